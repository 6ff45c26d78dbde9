"""A running service, and waiting for what it does."""

import asyncio
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


class Service(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    log: Path
    queries: Path

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(15)


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
        await asyncio.sleep(0.02)


def wait_for_url(process: subprocess.Popen[str], log: Path) -> str:
    def announced() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"^Metrics API on (http://\S+)", log.read_text(), re.MULTILINE)
        return found[1] if found else None

    return wait_until(announced)
