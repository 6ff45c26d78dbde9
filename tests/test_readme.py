"""README.md and docs/ do what they say: their commands run as they stand there, in a copy of the project.

A fence says what becomes of its block: `sh` and `console` are run, a document's blocks in one shell, and what a console
prints is compared; a block whose fence names a file is written there first; `sh aws` wants what the tests have not.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import pytest
import yaml
from helpers import FENCE, ROOT, wait_for_url, wait_until

import app
from seed import embedded

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_HERE = {"aws", "citus", "docker", "env", "network", "venv"}
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".data", "__pycache__", "tests", ".*_cache")
SHELL = """\
set -euo pipefail
curl() { command curl --silent --show-error --fail-with-body "$@" && echo; }
"""
OWN_TABLE = 'psql "$DATABASE_URL" --command "CREATE TABLE sales (day date, amount numeric)"'


class Block(NamedTuple):
    """line is that of the fence."""

    language: str
    word: str
    text: str
    line: int

    @property
    def commands(self) -> str:
        if self.language == "console":
            return "".join(line[2:] for line in self.text.splitlines(keepends=True) if line.startswith("$ "))
        return self.text if self.language == "sh" and self.word not in NOT_HERE else ""


class Project(NamedTuple):
    """A copy of the project whose service runs, on an embedded database of its own."""

    home: Path
    url: str

    def here(self, text: str) -> str:
        return text.replace("127.0.0.1:8000", self.url.removeprefix("http://"))

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        tools = embedded.installed_package() / "pginstall/bin"
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{tools}:/usr/local/bin:/usr/bin:/bin",
            "DATABASE_URL": f"postgresql://postgres@/postgres?host={self.home}/.data/socket",
        }
        command = ["timeout", "60", "bash", "-c", SHELL + self.here(script)]
        return subprocess.run(command, cwd=self.home, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    home = Path(tempfile.mkdtemp(prefix="metrics-api-readme-"))
    home.chmod(0o755)  # as root, the database's user must reach it
    shutil.copytree(ROOT, home, ignore=NOT_COPIED, dirs_exist_ok=True)
    log = home / "log"
    with log.open("w") as out:
        command = [sys.executable, "app.py", "--port", "0"]
        process = subprocess.Popen(command, cwd=home, env={"PATH": "/usr/bin:/bin"}, stdout=out, stderr=out, text=True)
    try:
        url = wait_for_url(process, log)
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200, 60)
        project = Project(home, url)
        project.run(OWN_TABLE)
        yield project
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(home)


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    return [Block(f[1], f[2] or "", f[3], text[: f.start()].count("\n") + 1) for f in FENCE.finditer(text)]


def stable(text: str) -> str:
    """Without what differs from day to day and from run to run: white space and numbers."""
    return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"\s+", "", text))


def is_as_printed(shown: str, printed: str) -> bool:
    """An ellipsis stands for anything."""
    pattern = ".*".join(re.escape(part) for part in stable(shown).split("…"))
    return re.fullmatch(pattern, stable(printed)) is not None


def test_every_fence_says_what_becomes_of_its_block() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            known = block.language != "sh" or block.word in NOT_HERE | {""}
            assert known, f"{document.name}:{block.line}: sh {block.word} is none of {NOT_HERE}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.stem)
def test_the_commands_do_what_the_text_says(document: Path, project: Project) -> None:
    for block in (block for block in blocks(document) if "." in block.word):
        place = project.home / block.word
        place.parent.mkdir(exist_ok=True)
        place.write_text(project.here(block.text))
        if place.parent.name == "queries":
            wait_until(lambda: httpx.get(f"{project.url}/metrics/{place.stem}").status_code != 404)  # noqa: B023
    run = [block for block in blocks(document) if block.commands]
    done = project.run("".join(f"{block.commands}\necho '-- {block.line}'\n" for block in run))
    parts = ["start of the document", *re.split(r"^-- (\d+)$\n", done.stdout, flags=re.MULTILINE)]
    assert done.returncode == 0, f"{document.name}, behind the fence in line {parts[-2]}:\n{done.stdout}{done.stderr}"
    for block, printed in zip(run, parts[1::2], strict=False):
        if block.language == "console":
            shown = "".join(line for line in block.text.splitlines(keepends=True) if not line.startswith("$ "))
            assert is_as_printed(shown, printed), f"{document.name}:{block.line} is not what is printed:\n{printed}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.stem)
def test_what_is_not_run_can_at_least_be_read(document: Path) -> None:
    for block in blocks(document):
        match block.language:
            case "sh":
                subprocess.run(["bash", "-n", "-c", block.text], check=True)
            case "python":
                compile(block.text, f"{document.name}:{block.line}", "exec")
            case "json":
                json.loads(block.text)
            case "yaml":
                yaml.safe_load(block.text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.stem)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text())):
        path, _, heading = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{document.name}: {link}"


def test_the_table_of_settings_is_the_services() -> None:
    """Its names, and its defaults where they are numbers."""
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| ([^|]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = dict(
        pair
        for names, defaults in rows
        for pair in zip_longest(re.findall(r"\w+", names), re.findall(r"`(\d+)`", defaults))
    )
    fields = {field.name.upper(): field.default for field in msgspec.structs.fields(app.Settings)}
    numbers = {name: str(value) if isinstance(value, int) else None for name, value in fields.items()}
    assert shown == numbers


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250
