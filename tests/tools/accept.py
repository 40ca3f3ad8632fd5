"""Run the acceptance points in full size; a run of all of them is kept in docs/results.md.

Usage: python -m tests.tools.accept [WORDS]      # pytest's -k: only the tests whose names fit
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "docs" / "results.md"


def main() -> int:
    """Run, show what is printed as it comes, and write the page if everything was run."""
    words = sys.argv[1:]
    command = [sys.executable, "-m", "pytest", "-m", "accept", "-s", "-v", "-rA", "--timeout", "1800", "tests"]
    if words:
        command += ["-k", " ".join(words)]
    lines = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if not words and process.returncode == 0:
        RESULTS.write_text(page("".join(lines)))
        print(f"{RESULTS.relative_to(ROOT)} is written")
    return process.returncode


def page(output: str) -> str:
    """The page: where and when, and what was printed, without what differs for no reason."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, CPython {platform.python_version()}"
    kept = re.split(r"^=+ (?:short test summary info|PASSES) =+$", output, flags=re.MULTILINE)[0]
    kept = kept.partition("\ncollected ")[2].partition("\n")[2]  # not the paths and plugins of this machine
    body = "\n".join(line.rstrip() for line in kept.splitlines() if line.strip())
    closing = output.strip().splitlines()[-1].strip("= ")
    return (
        "# Results of the last full acceptance run\n\n"
        "Written by `make accept`; not edited by hand.\n\n"
        f"* commit: {commit.stdout.strip()}\n* date: {datetime.now(UTC):%Y-%m-%d}\n* machine: {machine}\n"
        f"* outcome: {closing}\n\n```text\n{body}\n```\n"
    )


if __name__ == "__main__":
    sys.exit(main())
