"""The pages' examples, run like a person runs them."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path
from typing import Final

import pytest

from kdispatch.doctor.examination import NEEDED
from tests.demo.processes import ROOT
from tests.docs.examples import Example, Runner, examples_of

RELAY: Final = Example("sh", "kdispatch relay serve", "listening on", None)
SIGN_UP: Final = "kdispatch sign-up ann --relay http://127.0.0.1:8443 --quiet\n"
PAGES: Final = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.slow
async def test_readme(tmp_path: Path) -> None:
    """The README's commands, in order, fetch the service's directory listing through the tunnel."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: the README's last command can't be run")
    (tmp_path / "a-file-to-see").touch()
    runner = Runner(tmp_path)
    async with runner.programs:
        printed = [await runner.run(example) for example in examples_of("README.md")]
    assert len(printed) == 7
    assert all("a-file-to-see" in listing for listing in printed[-2:])


@pytest.mark.slow
async def test_library_page(tmp_path: Path) -> None:
    """The library page's examples reach each other, and print the output on the page."""
    runner = Runner(tmp_path)
    async with runner.programs:
        await runner.run(RELAY)
        await runner.run(Example("sh", f"{SIGN_UP}kdispatch service create shout --quiet", None, None))
        for example in examples_of("docs/library.md"):
            await runner.run(example)


@pytest.mark.slow
async def test_doctor_page(tmp_path: Path) -> None:
    """The page's example finds no problem at a new relay, and the page lists every check."""
    runner = Runner(tmp_path)
    async with runner.programs:
        await runner.run(RELAY)
        await runner.run(Example("sh", SIGN_UP, None, None))
        for example in examples_of("docs/doctor.md"):
            await runner.run(example)
    described = re.findall(r"(?m)^\| `([a-z ]+)` \|", (ROOT / "docs" / "doctor.md").read_text())
    assert described == [*NEEDED, "service", "local port", "descriptors"]


@pytest.mark.slow
async def test_operations_page(tmp_path: Path) -> None:
    """The page's backup of a running relay is a complete database with its admins."""
    runner = Runner(tmp_path)
    (tmp_path / "data" / "kdispatch").mkdir(parents=True)
    async with runner.programs:
        await runner.run(RELAY)
        await runner.run(Example("sh", SIGN_UP, None, None))
        for example in examples_of("docs/operations.md"):
            await runner.run(example)
    copy = tmp_path / "relay-copy.db"
    assert copy.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(copy) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT handle FROM admins").fetchall() == [("ann",)]
    database.close()


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    """Every link to a file of the project has an existing target."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing
