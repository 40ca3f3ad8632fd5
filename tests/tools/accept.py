"""Run the acceptance points in full size; what they print is kept in docs/results.md, whatever the outcome.

Usage: python -m tests.tools.accept [WORDS]      # pytest's -k: only the tests whose names fit, kept as such
"""

from __future__ import annotations

import re
import sys

from tests.tools.results import run_and_show, write_section


def main() -> int:
    """Run, show what is printed as it comes, and write the page's section."""
    words = sys.argv[1:]
    command = [sys.executable, "-m", "pytest", "-m", "accept", "-s", "-v", "-rA", "--timeout", "1800", "tests"]
    if words:
        command += ["-k", " ".join(words)]
    status, output = run_and_show(command)
    title = f"make accept ONLY={' '.join(words)}" if words else "make accept"
    write_section(title, output.strip().splitlines()[-1].strip("= "), printed(output))
    return status


def printed(output: str) -> str:
    """What the tests printed, without what differs for no reason."""
    kept = re.split(r"^=+ (?:short test summary info|PASSES|FAILURES) =+$", output, flags=re.MULTILINE)[0]
    kept = kept.partition("\ncollected ")[2].partition("\n")[2]  # not the paths and plugins of this machine
    return "\n".join(line.rstrip() for line in kept.splitlines() if line.strip())


if __name__ == "__main__":
    sys.exit(main())
