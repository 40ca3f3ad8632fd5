"""Low load of every kind for a long time, to find growth; docs/results.md keeps a run of an hour.

Usage: python -m tests.tools.soak [--minutes 10]
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from tests.tools.results import run_and_show, write_section

_MINUTES: Final = 60.0  #: the shortest run that the page keeps


def main() -> int:
    """Run, show the output as it comes, and write the page after a long run, whatever its outcome."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.soak", description="What grows in an hour.")
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    status, printed = run_and_show([sys.executable, "-m", "tests.soak.run", "--minutes", str(minutes)])
    report = printed[printed.find("soak, ") :]
    if minutes >= _MINUTES and report.startswith("soak, "):
        write_section("make soak", "nothing grows" if status == 0 else "FAILED", report.rstrip())
    return status


if __name__ == "__main__":
    sys.exit(main())
