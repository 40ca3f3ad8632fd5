"""The chaos tool: its plans, the failures that it detects, and a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.plan import KINDS, Strike, make_plan
from tests.chaos.report import Report
from tests.chaos.run import Chaos
from tests.faults.faults import Stop
from tests.faults.rig import Rig
from tests.faults.spoiled import Ends, Spoil, Stands, damaged, fails, spoiled
from tests.faults.transfer import Transfers, transfers
from tests.net.harness import Relay, sizes
from tests.net.tcp import service, sink

_ROOT: Final = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.chaos.run", *arguments]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)


def test_a_seed_reproduces_its_plan() -> None:
    """The same seed gives the same plan, another seed another one, and a long plan has each kind of fault."""
    assert make_plan(7, 1200) == make_plan(7, 1200)
    assert make_plan(7, 1200) != make_plan(8, 1200)
    assert {strike.kind for strike in make_plan(7, 1200)} == KINDS.keys()


def test_long_faults_strike_alone() -> None:
    """No plan has two long stops that together exceed a stream's grace, and every plan ends in time."""

    def long(plan: list[Strike]) -> Iterator[tuple[float, float]]:
        for strike in plan:
            if isinstance(strike.fault, Stop) and strike.fault.seconds > 8:
                yield strike.at, strike.at + strike.fault.seconds

    spans = [list(long(make_plan(seed, 900))) for seed in range(100)]
    assert sum(map(len, spans)) > 100
    for of_one in spans:
        assert all(begin >= end + 19 for (_, end), (begin, _) in pairwise(of_one))
        assert all(end <= 900 for _, end in of_one)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (damaged(lambda chunk: chunk[:-1]), "differs"),
        (fails(Ends()), "ended cleanly"),
        (fails(ConnectionResetError()), "broke"),
        (fails(Stands()), "stands still"),
    ],
    ids=["bytes", "end", "reset", "stall"],
)
async def test_damage_fails_a_run(spoil: Spoil, told: str, tmp_path: Path) -> None:
    """Missing bytes, an early end, a reset and a stall each fail a run."""
    async with transfers(1, 0.5) as through, spoiled(through, spoil) as port:
        report = await _run_on(through, port, tmp_path)
    assert any(told in failure for failure in report.failures), report.failures
    assert "FAILED" in next(iter(report.lines()))


async def test_a_refusal_needs_a_reason(tmp_path: Path) -> None:
    """A connection refused without an active fault fails a run."""
    async with transfers(1, 0.5) as through:
        async with service(sink) as gone:
            pass
        report = await _run_on(through, gone.port, tmp_path)
    assert any("with nothing broken" in failure for failure in report.failures), report.failures


async def _run_on(through: Transfers, port: int, folder: Path) -> Report:
    """A run without faults and without kdispatch; its users connect to that port."""
    on = Rig(through, Relay(folder), {})
    on.port = port
    return await Chaos(on, [], seed=1, seconds=1.5, say=lambda _: None).run()


def test_a_plan_is_printed() -> None:
    """``--plan`` prints a seed's faults and starts nothing; a report without failures says so in its first line."""
    ended = _run("--minutes", "1", "--seed", "4", "--plan")
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[1:] == [str(strike) for strike in make_plan(4, 60)]
    assert "everything held" in next(iter(Report(4, 60).lines()))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("minutes", sizes(0.05, 3.0))
def test_everything_holds(minutes: float) -> None:
    """A run of the tool reports faults, bytes, resumptions and the longest pause, and no failure."""
    ended = _run("--minutes", str(minutes), "--seed", "161")
    report = ended.stdout[ended.stdout.find("chaos, seed") :]
    print(report)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for told in ("faults, everything held", "every byte compared", "sessions resumed", "longest pause"):
        assert told in report
