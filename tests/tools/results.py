"""docs/results.md: the output of the last full runs, a section for each kind of run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

__all__ = ["ROOT", "run_and_show", "write_section"]

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "docs" / "results.md"

_HEAD: Final = (
    "# Results of the last full runs\n\nWritten by `make accept`, `make chaos` and `make soak`; not edited by hand.\n"
)


def run_and_show(command: list[str], **environment: str) -> tuple[int, str]:
    """Run a command and show its output as it comes; returns its status and its output."""
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def write_section(title: str, outcome: str, body: str) -> None:
    """Replace the section with this title: date and machine, outcome, output."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, CPython {platform.python_version()}"
    text = RESULTS.read_text() if RESULTS.exists() else _HEAD
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    sections[title] = (
        f"\n* commit: {commit.stdout.strip()}\n* date: {datetime.now(UTC):%Y-%m-%d}\n* machine: {machine}\n"
        f"* outcome: {outcome}\n\n```text\n{body}\n```\n"
    )
    written = "".join(f"\n## {name}\n{content.rstrip()}\n" for name, content in sorted(sections.items()))
    RESULTS.write_text(_HEAD + written)
    print(f"{RESULTS.relative_to(ROOT)}: {title} is written", file=sys.stderr)
