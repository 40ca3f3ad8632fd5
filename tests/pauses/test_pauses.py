"""The table of pauses in docs/programs.md, and the rig that measures it."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.pauses import page
from tests.pauses.catalogue import CASES
from tests.pauses.rig import Case
from tests.pauses.run import measure_all
from tests.programs.install import find


def _case(name: str) -> Case:
    case = next(case for case in CASES if case.name == name)
    for program in case.needs:
        if shutil.which(find(program)) is None:
            pytest.skip(f"{program} is not installed")
    return case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "relay").mkdir()
    return tmp_path


def test_the_page_shows_what_was_measured() -> None:
    """The table in docs/programs.md equals the one made from the record."""
    assert page.table(CASES, page.read()) in page.PAGE.read_text()


def test_every_case_was_measured_in_every_pause() -> None:
    """Each case of the catalogue has an outcome for each pause of the table."""
    record = page.read()
    assert [case.name for case in CASES if set(record[case.name]["pauses"]) != {"20", "45", "90", "115"}] == []
    assert set(record) == {case.name for case in CASES}


def test_a_failure_is_told_with_its_time_and_words() -> None:
    """A cell shows how and when the program ended, and a wrong result takes precedence over the exit status."""
    told = {"survived": False, "status": 1, "after": 4.6, "words": "timed out | 127.0.0.1:4711", "wrong": False}
    lost = {**told, "status": 0, "wrong": True}
    good = {**told, "status": 0, "survived": True}
    record: page.Record = {CASES[0].name: {"version": "9", "pauses": {"20": good, "45": told, "90": lost}}}
    row = page.table(CASES[:1], record).splitlines()[-1]
    assert "| goes on | ends after 5 s | **wrong** | - | `timed out \\| 127.0.0.1` |" in row


@pytest.mark.slow
def test_redis_cli_goes_on_after_a_lost_network(folder: Path) -> None:
    """The rig drops the client agent's network for 2 s, and the program's result is right."""
    case = _case("redis-cli")
    (outcome,) = asyncio.run(measure_all([case], [2.0], folder, sys.executable, 1))
    assert not isinstance(outcome, str), outcome
    assert outcome.survived, json.dumps(outcome.words)
    assert outcome.after > 2
