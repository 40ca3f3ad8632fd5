"""Switch off each defence of tests/security/defences.py in a copy of the tree: its threat's test must fail.

Usage: python -m tests.tools.defences [NUMBER ...]   # of threats; without numbers all, and docs/security.md is written
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from tests.security.defences import DEFENCES, THREATS, Defence
from tests.tools.markdown import table

__all__ = ["ROOT", "Outcome", "check_all", "main", "table_of"]

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "security.md"
_PART: Final = re.compile(r"(<!-- made by tests.tools.defences -->\n).*?(<!-- end -->)", re.DOTALL)
_PACKAGES: Final = ("agent", "relay", "shared")
#: The start of a failed assertion's message; any other failure is an accident, and proves nothing.
_ASSERTED: Final = ("AssertionError", "assert ", "Failed: DID NOT RAISE")
_SHOWN: Final = 90  # characters of a message that the page shows
_AT_ONCE: Final = 2  # tests mostly wait; each worker has its own copy of the tree
_PATIENCE: Final = 300  # seconds for one test


class Outcome(NamedTuple):
    """A test run: the number of passed cases, the messages of failed assertions, and those of other failures."""

    passed: int
    failed: list[str]
    broken: list[str]


def _copied(folder: Path) -> Path:
    """Make a copy of the tree."""
    copy = folder / "tree"
    copy.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def _run(copy: Path, tests: Sequence[str]) -> Outcome:
    report = copy / "report.xml"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(copy / name) for name in _PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",  # a cached file would hide a second change within a second
    }
    selected = [f"tests/security/{test}" for test in tests]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "not accept",
        f"--junitxml={report}",
        "--timeout",
        "100",
        *selected,
    ]
    ended = subprocess.run(
        command,
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE * len(selected),
    )
    passed, failed, broken = 0, [], []
    if not report.exists():
        return Outcome(0, [], [ended.stdout[-500:] + ended.stderr[-500:]])
    for case in ET.parse(report).iter("testcase"):
        failures = [one.get("message", "") for one in case.findall("failure")]
        errors = [one.get("message", "") for one in case.findall("error")]
        failed += [message for message in failures if message.startswith(_ASSERTED)]
        broken += [message for message in failures if not message.startswith(_ASSERTED)] + errors
        passed += not failures and not errors and case.find("skipped") is None
    return Outcome(passed, failed, broken)


def _without(copy: Path, defence: Defence) -> Outcome:
    """Run the defence's test while the defence is switched off."""
    before = {edit.file: (copy / edit.file).read_text() for edit in defence.edits}
    try:
        for edit in defence.edits:
            text = (copy / edit.file).read_text()
            assert text.count(edit.old) == 1, f"{edit.file} has not once: {edit.old}"
            (copy / edit.file).write_text(text.replace(edit.old, edit.new))
        return _run(copy, [defence.test])
    finally:
        for file, text in before.items():
            (copy / file).write_text(text)


def check_all(defences: Sequence[Defence]) -> tuple[list[str], dict[Defence, str]]:
    """Return the problems as sentences, and for each defence its test's message without it."""
    wrong: list[str] = []
    says: dict[Defence, str] = {}
    with tempfile.TemporaryDirectory(prefix="kdispatch-defences-") as folder, ThreadPoolExecutor(_AT_ONCE) as pool:
        copies = [_copied(Path(folder) / str(number)) for number in range(_AT_ONCE)]
        with_all = _run(copies[0], list(dict.fromkeys(defence.test for defence in defences)))
        if with_all.failed or with_all.broken or not with_all.passed:
            wrong.append(f"with all defences: {[*with_all.failed, *with_all.broken]}")

        def without(defence: Defence) -> Outcome:
            copy = copies.pop()
            try:
                return _without(copy, defence)
            finally:
                copies.append(copy)

        for defence, outcome in zip(defences, pool.map(without, defences), strict=True):
            if outcome.failed:
                says[defence] = _short(outcome.failed[0])
            else:
                wrong.append(f"{defence.threat}, {defence.what}: no assertion failed. {outcome.broken[:1]}")
            print(f"{defence.threat:3} {defence.what}: {says.get(defence) or wrong[-1]}", flush=True)
    return wrong, says


def _short(message: str) -> str:
    """The first line of a failed assertion, shortened for a page."""
    line = message.partition("\n")[0].removeprefix("AssertionError: ").removeprefix("Failed: ")
    line = re.sub(r"\b(adm|svc|cli|hst|inv)_[A-Za-z0-9_-]{16,}", r"\1_…", line)
    line = re.sub(r"0x[0-9a-f]+|/tmp/\S+", "…", line)
    line = re.sub(r"\b\d+ tries", "too many tries", line)  # a different number each time
    return (line[:_SHOWN] + "…" if len(line) > _SHOWN else line).replace("`", "'")


def table_of(says: dict[Defence, str]) -> str:
    """The page's table."""
    rows = []
    for defence, said in says.items():
        files = ", ".join(f"`{edit.file}`" for edit in {edit.file: edit for edit in defence.edits}.values())
        test = defence.test.replace("::", " ").replace(".py", "")
        rows.append((str(defence.threat), THREATS[defence.threat], defence.what, files, f"`{test}`", f"`{said}`"))
    return table(("#", "threat", "defence", "file", "test that fails without it", "message of that test"), rows)


def main(arguments: Sequence[str]) -> int:
    """Check the defences, and write the page if all were checked without a problem."""
    wanted = set(map(int, arguments)) or set(THREATS)
    wrong, says = check_all([defence for defence in DEFENCES if defence.threat in wanted])
    for sentence in wrong:
        print(f"WRONG: {sentence}", file=sys.stderr)
    if not wrong and not arguments:
        PAGE.write_text(_PART.sub(lambda found: f"{found[1]}{table_of(says)}{found[2]}", PAGE.read_text()))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
