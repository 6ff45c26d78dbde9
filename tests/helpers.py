"""A running service, waiting for what it does, and databases beside its own."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import psycopg
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for what runs as a script
T = TypeVar("T")
# A block of code in README or docs: its language, the word behind that, and its text.
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# `python app.py`, but what is compiled is kept, which is a third of a start.
APP = [sys.executable, "-W", "error", "-m", "app"]
# The first is made for this: a third of the work, for it draws no window.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")


class Service(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    queries: Path

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(15)


def alone(env: Mapping[str, str]) -> dict[str, str]:
    """These settings and no others."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | dict(env)


def launch(command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process with these settings and no others, which says what it says in a file."""
    with log.open("ab") as out:
        return subprocess.Popen(command, cwd=ROOT, env=alone(env), stdout=out, stderr=out)


def run_app(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command of the service to its end, with these settings and no others."""
    command = [*APP, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=alone(env), capture_output=True, text=True, timeout=60)


def wait_until(condition: Callable[[], T | None], seconds: float = 30) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if result := condition():
                return result
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


async def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until an async condition holds."""
    deadline = time.monotonic() + seconds
    while not await condition():  # type: ignore[misc]
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.05)


def wait_for_url(process: subprocess.Popen[Any], log: Path) -> str:
    def announced() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"^Metrics API on (http://\S+)", log.read_text(), re.MULTILINE)
        return found[1] if found else None

    return wait_until(announced)


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A browser; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        yield browser
        browser.close()


@contextmanager
def another_database(cluster: str, name: str, options: str = "") -> Iterator[str]:
    """The URL of an empty database on the same server; skips the test where none may be made."""
    with psycopg.connect(cluster, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        try:
            conn.execute(f"CREATE DATABASE {name} {options}".encode())
        except psycopg.errors.InsufficientPrivilege as exc:
            pytest.skip(f"no second database: {exc}")
        yield re.sub("(://[^/?]*)(/[^?]*)?", rf"\1/{name}", cluster, count=1)
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
