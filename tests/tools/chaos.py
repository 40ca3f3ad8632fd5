"""Random worlds of the core, then all faults on real processes; docs/results.md keeps a long run.

Usage: python -m tests.tools.chaos [--minutes 10] [--seed N] [--worlds 50000]
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from tests.tools.results import run_and_show, write_section

#: The smallest run that the page keeps.
_MINUTES: Final = 20.0
_WORLDS: Final = 50_000


def main() -> int:
    """Run both, show their output as it comes, and write the page after a successful long run."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.chaos", description="Random faults.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--worlds", type=int, default=_WORLDS)
    arguments = parser.parse_args()
    worlds = [sys.executable, "-m", "pytest", "-m", "accept", "-s", "--timeout", "3600", "tests/core/test_two_ends.py"]
    status, played = run_and_show(worlds, KDISPATCH_RUNS=str(arguments.worlds))
    if status:
        return status
    seed = [] if arguments.seed is None else ["--seed", str(arguments.seed)]
    status, printed = run_and_show(
        [sys.executable, "-m", "tests.chaos.run", "--minutes", str(arguments.minutes), *seed]
    )  # fmt: skip
    if status == 0 and arguments.minutes >= _MINUTES and arguments.worlds >= _WORLDS:
        cases = next(line for line in played.splitlines() if "cases in" in line)
        report = printed.partition("\nchaos, seed ")[2]
        write_section("make chaos", "everything held", f"{cases}\nchaos, seed {report.rstrip()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
