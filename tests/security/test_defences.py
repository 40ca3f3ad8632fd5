"""Every threat has a test, and each test fails when its defence is switched off."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.security.defences import DEFENCES, THREATS
from tests.tools.defences import PAGE, ROOT, main


def test_each_threat_has_a_test_and_a_defence() -> None:
    """Each threat has a test file and an entry that switches its defence off; the page's table lists the entries."""
    folder = Path(__file__).parent
    assert {int(file.name[12:14]) for file in folder.glob("test_threat_*.py")} == THREATS.keys()
    assert {defence.threat for defence in DEFENCES} == THREATS.keys()
    told = re.findall(r"^\| (\d+) \| .+? \| (.+?) \| `", PAGE.read_text(), re.MULTILINE)
    assert told == [(str(defence.threat), defence.what) for defence in DEFENCES], "run python -m tests.tools.defences"


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.what)
def test_it_is_where_it_is_said_to_be(defence: object) -> None:
    """The lines that an entry replaces occur once in the code, and its test exists."""
    found = next(one for one in DEFENCES if one is defence)
    for edit in found.edits:
        assert (ROOT / edit.file).read_text().count(edit.old) == 1, edit
        assert edit.old != edit.new
    file, _, name = found.test.partition("::")
    assert f"def {name}" in (Path(__file__).parent / file).read_text()


@pytest.mark.accept
@pytest.mark.timeout(1800)
async def test_defences_switched_off() -> None:
    """With one of these defences off, a test of its threat fails by its own assertion; with all on, none fails."""
    assert await asyncio.to_thread(main, []) == 0
