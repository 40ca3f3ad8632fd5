"""``make profile``: where the CPU time of each process goes while bulk runs.

By kind: the kernel's share is told by the kernel for any process; perf, where it may be used, splits the rest into the
interpreter and C libraries. By function: py-spy (PyPI) looks at the Python stacks from outside; C code counts for the
Python function that calls it. Both need root, or a kernel that lets a user look at processes of his own
(kernel.yama.ptrace_scope=0, kernel.perf_event_paranoid=1).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench import chains, load, machine, page
from bench.chains import Chain
from bench.processes import Program, cpu_seconds

__all__: list[str] = []

_FUNCTIONS: Final = 12  # that are shown of each process
_HERTZ: Final = 250
_SETTLED: Final = 1.0  # seconds until windows have grown
_KINDS: Final = ("kernel", "interpreter", "uvloop", "websockets", "libc", "other C")


def _kind_of(binary: str) -> str:
    if binary.startswith("["):
        return "kernel"
    for part, kind in (("uvloop", "uvloop"), ("speedups", "websockets"), ("libc", "libc"), ("loop.cpython", "uvloop")):
        if part in binary:
            return kind
    return "interpreter" if "python" in binary and "cpython" not in binary else "other C"


def _kinds(program: Program, seconds: float, folder: Path) -> dict[str, float]:
    """Shares of the processor time that the process used meanwhile, and how much of a core that was ("core")."""
    before = cpu_seconds([program.pid]), cpu_seconds([program.pid], system=True)
    began = time.monotonic()
    file = folder / f"{program.name}.perf"
    perf = shutil.which("perf")
    found: dict[str, float] = {}
    if perf is not None:
        record = [perf, "record", "-q", "-e", "cpu-clock", "-F", str(_HERTZ), "-p", str(program.pid), "-o", str(file)]
        recorded = subprocess.run([*record, "--", "sleep", str(seconds)], capture_output=True, check=False)
        if recorded.returncode == 0:
            report = [perf, "report", "-q", "-i", str(file), "--sort", "dso", "--stdio"]
            printed = subprocess.run(report, capture_output=True, text=True, check=False).stdout
            for share, binary in re.findall(r"^\s*([\d.]+)%\s+(\S+)", printed, re.MULTILINE):
                kind = _kind_of(binary)
                found[kind] = found.get(kind, 0.0) + float(share) / 100
    if not found:
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    total = cpu_seconds([program.pid]) - before[0]
    if not found:
        kernel = (cpu_seconds([program.pid], system=True) - before[1]) / max(total, 0.01)
        found = {"kernel": kernel, "interpreter": 1 - kernel}
    return found | {"core": total / (time.monotonic() - began)}


def _functions(program: Program, seconds: float, folder: Path) -> list[tuple[str, float]]:
    """The Python functions in which the process was found most often; nothing where py-spy can't be used."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        return []
    file = folder / f"{program.name}.spy"
    command = [spy, "record", "--nonblocking", "-r", str(_HERTZ), "-d", str(max(1, round(seconds)))]
    subprocess.run([*command, "-f", "raw", "-o", str(file), "-p", str(program.pid)], capture_output=True, check=False)
    if not file.exists():
        return []
    counts: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        counts[_short(stack.rpartition(";")[2])] += int(count)
    total = counts.total() or 1
    return [(name, count / total) for name, count in counts.most_common(_FUNCTIONS)]


def _short(frame: str) -> str:
    """``function (folder/file.py)`` without the line, so that a function is one."""
    name, _, place = frame.partition(" (")
    return f"{name} ({'/'.join(Path(place.partition(':')[0].rstrip(')')).parts[-2:])})"


def profile(chain: Chain, kind: str, seconds: float, folder: Path) -> str:
    """Markdown: a table of kinds, and for each process its functions."""
    with load.beside(
        "bulk", ports=[chain.port], kind=kind, streams=1, service=chain.service, seconds=600.0, ramp=0.0, pids=[]
    ):
        time.sleep(_SETTLED)
        kinds = [(program.name, _kinds(program, seconds, folder)) for program in chain.programs]
        functions = [(program.name, _functions(program, seconds, folder)) for program in chain.programs]
    return "\n\n".join([_kind_table(kinds), *(_function_table(*each) for each in functions if each[1])])


def _kind_table(rows: Iterable[tuple[str, dict[str, float]]]) -> str:
    lines = [
        f"| process | of a core | {' | '.join(_KINDS)} |",
        f"|---|---:|{'---:|' * len(_KINDS)}",
    ]
    for name, found in rows:
        shares = " | ".join(f"{found.get(kind, 0.0):.0%}" for kind in _KINDS)
        lines.append(f"| {name} | {found['core']:.0%} | {shares} |")
    return "\n".join(lines)


def _function_table(name: str, functions: list[tuple[str, float]]) -> str:
    lines = [f"| {name}: Python function, with the C code and system calls that it makes | time |", "|---|---:|"]
    return "\n".join([*lines, *(f"| `{function}` | {share:.0%} |" for function, share in functions)])


def main() -> int:
    """Profile one download and one upload through kdispatch."""
    parser = argparse.ArgumentParser(prog="make profile", description="Where CPU time goes while bulk runs.")
    parser.add_argument("--secs", type=float, default=4.0, help="seconds for each look at each process")
    parser.add_argument("--plain", action="store_true", help="on asyncio's own event loop")
    parser.add_argument("--page", action="store_true", help="write it into docs/performance.md")
    given = parser.parse_args()
    parts = [f"Commit {machine.describe()['commit']}, bulk of one stream."]
    with tempfile.TemporaryDirectory(prefix="kdispatch-profile-") as name:
        folder = Path(name)
        with (
            chains.service(folder / "service") as service,
            chains.kdispatch(folder / "kdispatch", service, plain=given.plain) as chain,
        ):
            for kind, direction in (("d", "Down"), ("u", "Up")):
                parts += [f"### {direction}", profile(chain, kind, given.secs, folder)]
    print("\n\n".join(parts))
    if given.page:
        page.write("profile", "\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
