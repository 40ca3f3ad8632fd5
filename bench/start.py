"""Measurements without a ruler: times of starts, and memory of idle streams and sessions."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench import chains, idle
from bench.processes import KDISPATCH, PYTHON, Processes
from bench.table import Line

__all__ = ["TITLES", "lines", "memory_lines"]

TITLES: Final = {"start": "starting", "memory": "memory"}
_TIMES: Final = 3  # of each kind, per round


def lines(folder: Path, *, rounds: int, plain: bool) -> Iterator[Line]:
    """Milliseconds of an import, of a short command, and of an agent's start."""
    processes = Processes(folder, chains.environment(folder, plain=plain))
    try:
        _, url = chains.relay(processes)
        processes.run(KDISPATCH, "sign-up", "ann", "--relay", url)
        processes.run(KDISPATCH, "service", "create", "web")

        def imported(module: str) -> None:
            code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
            took.append(float(processes.run(PYTHON, "-c", code)))

        def timed(begin: Callable[[], object]) -> None:
            began = time.perf_counter()
            begin()
            took.append(time.perf_counter() - began)

        def agent() -> None:
            host = processes.start("host", KDISPATCH, "agent", "host", "ann/web", "--port", url.rpartition(":")[2])
            host.says("is offered as")

        kinds: dict[str, Callable[[], None]] = {
            "import kdispatch": lambda: imported("kdispatch"),
            "import kdispatch.library": lambda: imported("kdispatch.library"),
            "kdispatch --version": lambda: timed(lambda: processes.run(KDISPATCH, "--version")),
            "kdispatch agent host until it is offered": lambda: timed(agent),
        }
        for title, kind in kinds.items():
            took: list[float] = []
            line = Line("start", title, "ms")
            for _ in range(rounds):
                took.clear()
                for _ in range(_TIMES):
                    kind()
                line.kdispatch.append(statistics.median(took) * 1e3)
            yield line
    finally:
        processes.stop()


def memory_lines(*, plain: bool) -> Iterator[Line]:
    """KB of memory of each process for an idle stream, and of the relay for an idle session."""
    loop = "asyncio" if plain or importlib.util.find_spec("uvloop") is None else "uvloop"
    theirs = idle.ruler_streams() if chains.has_ruler() else {}
    ours = idle.idle_streams(loop)
    for name, size in ours.items():
        line = Line("memory", f"idle stream: {name}", "KB", kdispatch=[size / 1e3])
        line.ruler += [theirs[name] / 1e3] if theirs else []
        yield line
    yield Line("memory", "idle session: relay", "KB", kdispatch=[idle.idle_sessions(loop) / 1e3])
