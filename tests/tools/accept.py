"""Run the acceptance points in full size; docs/results.md keeps their output, whatever the outcome.

Usage: python -m tests.tools.accept [WORDS]      # pytest's -k: only matching tests, kept in a separate section
"""

from __future__ import annotations

import re
import sys

from tests.guards.promises import MEASURED
from tests.tools.results import run_and_show, write_section


def main() -> int:
    """Run the tests, show their output as it comes, and write the page's section."""
    words = sys.argv[1:]
    command = [sys.executable, "-m", "pytest", "-m", "accept or timed", "-s", "-v", "-rA", "--timeout", "1800", "tests"]
    if words:
        command += ["-k", " ".join(words)]
    status, output = run_and_show(command, **{MEASURED: "1"})
    title = f"make accept ONLY={' '.join(words)}" if words else "make accept"
    write_section(title, output.strip().splitlines()[-1].strip("= "), printed(output))
    return status


def printed(output: str) -> str:
    """The tests' output without irrelevant differences."""
    kept = re.split(r"^=+ (?:short test summary info|PASSES|FAILURES) =+$", output, flags=re.MULTILINE)[0]
    kept = kept.partition("\ncollected ")[2].partition("\n")[2]  # without this machine's paths and plugins
    return "\n".join(line.rstrip() for line in kept.splitlines() if line.strip())


if __name__ == "__main__":
    sys.exit(main())
