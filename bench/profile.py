"""``make profile``: how each process spends its CPU time during a bulk transfer.

By kind: the kernel reports its own share for any process; perf, if it is available, splits the rest into the
interpreter and C libraries. By function: py-spy (PyPI) samples which Python function holds the interpreter; C code
counts for the function that calls it, and system calls do not count, because they release the interpreter. Both need
root, or a kernel that lets a user inspect processes of the same user (kernel.yama.ptrace_scope=0,
kernel.perf_event_paranoid=1).
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import chains, load, machine, page
from bench.chains import Chain
from bench.processes import Program, cpu_seconds

__all__: list[str] = []

_FUNCTIONS: Final = 10  # shown per process
_SYMBOLS: Final = 8
_HERTZ: Final = 500
_SETTLED: Final = 1.0  # seconds for windows to grow
_KINDS: Final = ("kernel", "interpreter", "uvloop", "websockets", "libc", "other C")


def _kind_of(binary: str) -> str:
    if binary.startswith("["):
        return "kernel"
    for part, kind in (("uvloop", "uvloop"), ("speedups", "websockets"), ("libc", "libc"), ("loop.cpython", "uvloop")):
        if part in binary:
            return kind
    return "interpreter" if "python" in binary and "cpython" not in binary else "other C"


@dataclass
class _Look:
    """Shares of one process's CPU time, and its use of a core."""

    name: str
    core: float = 0.0
    kinds: dict[str, float] = field(default_factory=dict)
    symbols: list[tuple[str, float]] = field(default_factory=list)
    functions: list[tuple[str, float]] = field(default_factory=list)


def _look(program: Program, seconds: float, folder: Path) -> _Look:
    look = _Look(program.name)
    before = cpu_seconds([program.pid]), cpu_seconds([program.pid], system=True)
    began = time.monotonic()
    samples = _samples(program, seconds, folder)
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    total = cpu_seconds([program.pid]) - before[0]
    look.core = total / (time.monotonic() - began)
    for share, binary, _ in samples:
        kind = _kind_of(binary)
        look.kinds[kind] = look.kinds.get(kind, 0.0) + share
    if not samples:
        kernel = (cpu_seconds([program.pid], system=True) - before[1]) / max(total, 0.01)
        look.kinds = {"kernel": kernel, "interpreter": 1 - kernel}
    look.symbols = [(f"{symbol} ({_kind_of(binary)})", share) for share, binary, symbol in samples[:_SYMBOLS]]
    look.functions = _functions(program, seconds, folder)
    return look


def _samples(program: Program, seconds: float, folder: Path) -> list[tuple[float, str, str]]:
    """Share, binary and symbol of perf's samples, largest first; empty if perf is not available."""
    perf = shutil.which("perf")
    if perf is None:
        return []
    file = str(folder / f"{program.name}.perf")
    record = [perf, "record", "-q", "-e", "cpu-clock", "-F", "997", "-p", str(program.pid), "-o", file]
    if subprocess.run([*record, "--", "sleep", str(seconds)], capture_output=True, check=False).returncode:
        return []
    report = [perf, "report", "-q", "-i", file, "--sort", "dso,symbol", "--stdio"]
    printed = subprocess.run(report, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^\s*([\d.]+)%\s+(\S+)\s+\[.\] (\S+)", printed, re.MULTILINE)
    return [(float(share) / 100, binary, symbol) for share, binary, symbol in found]


def _functions(program: Program, seconds: float, folder: Path) -> list[tuple[str, float]]:
    """The Python functions with the most samples; empty if py-spy is not available."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        return []
    file = folder / f"{program.name}.spy"
    command = [spy, "record", "--gil", "--nonblocking", "-r", str(_HERTZ), "-d", str(max(1, round(seconds)))]
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
    """Return ``function (folder/file.py)`` without the line number, so that each function has one entry."""
    name, _, place = frame.partition(" (")
    if name == "Runner.run":
        return "the event loop itself"
    return f"{name} ({'/'.join(Path(place.partition(':')[0].rstrip(')')).parts[-2:])})"


def profile(chain: Chain, kind: str, seconds: float, folder: Path) -> str:
    """Return Markdown: a table of kinds, and the functions of each process."""
    with load.beside(
        "bulk", ports=[chain.port], kind=kind, streams=1, service=chain.service, seconds=600.0, ramp=0.0, pids=[]
    ):
        time.sleep(_SETTLED)
        looks = [_look(program, seconds, folder) for program in chain.programs]
    parts = [_kind_table(looks)]
    for look in looks:
        if look.symbols:
            parts.append(_share_table(f"{look.name}: C function", look.symbols))
        if look.functions:
            parts.append(_share_table(f"{look.name}: Python function, while it holds the interpreter", look.functions))
    return "\n\n".join(parts)


def _kind_table(looks: Iterable[_Look]) -> str:
    lines = [
        f"| process | of a core | {' | '.join(_KINDS)} |",
        f"|---|---:|{'---:|' * len(_KINDS)}",
    ]
    for look in looks:
        shares = " | ".join(f"{look.kinds.get(kind, 0.0):.0%}" for kind in _KINDS)
        lines.append(f"| {look.name} | {look.core:.0%} | {shares} |")
    return "\n".join(lines)


def _share_table(title: str, shares: list[tuple[str, float]]) -> str:
    lines = [f"| {title} | time |", "|---|---:|"]
    return "\n".join([*lines, *(f"| `{name}` | {share:.0%} |" for name, share in shares)])


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
