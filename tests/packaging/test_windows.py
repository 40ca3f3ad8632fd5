"""The agents' packages use nothing that Python on Windows lacks, unless they have checked. It needs no Windows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
#: What runs at a client or a host.
PACKAGES: Final = ("agent", "shared")
#: Methods that every event loop has, and that the one for Windows, with proactors, answers with NotImplementedError.
_LOOP: Final = frozenset({
    "add_reader", "remove_reader", "add_writer", "remove_writer", "add_signal_handler", "remove_signal_handler",
    "create_unix_server", "create_unix_connection", "open_unix_connection", "start_unix_server",
})  # fmt: skip
#: Where each such name may stand, and the check that Windows does not pass. A class includes its methods.
_CHECKED: Final = {
    "agent/kdispatch/machine/operating_system.py: Posix": "the class for the other systems",
    "agent/kdispatch/machine/posix_facts.py: pass_explicit_interrupts_on": "Posix starts it",
    "agent/kdispatch/machine/posix_facts.py: send": "Posix calls it",
    "agent/kdispatch/machine/posix_input.py: _woken_by_signals": "Posix reads standard input by it",
    "agent/kdispatch/machine/control_server.py: ControlServer.__aenter__": "the socket's family",
    "agent/kdispatch/local/accept.py: Acceptor": "HERE.waits_for_sockets",
    "agent/kdispatch/local/dial.py: _writable": "a socket comes from _numeric, which asks HERE.waits_for_sockets",
    "shared/kdispatch_protocol/process/unblocked.py: OutputPlace._run": "hasattr",
    "shared/kdispatch_protocol/session/aio/writer.py: SocketWriter.write": "hasattr, in __init__",
}


def _missing(*files: str, cache: Path) -> Iterator[tuple[str, int, str]]:
    """File, line and name of each use of a module's attribute that Windows' Python lacks, as typeshed has it."""
    command = [sys.executable, "-m", "mypy", "--platform", "win32", "--cache-dir", str(cache), "--no-pretty", *files]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode in {0, 1}, run.stdout + run.stderr
    for error in re.finditer(r"^(.+?):(\d+): error: Module has no attribute \"(\w+)\"", run.stdout, re.MULTILINE):
        yield error[1], int(error[2]), error[3]


def _loop_calls(file: Path) -> Iterator[tuple[str, int, str]]:
    """The same of methods that an event loop on Windows does not have."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in _LOOP:
            yield str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file), node.lineno, node.attr


def _scopes(file: str, line: int) -> list[str]:
    """The classes and functions around a line, outermost first, each with its path from the module."""
    found: list[str] = []
    inside = ast.parse((ROOT / file).read_text()).body
    while True:
        around = [
            node for node in inside
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.lineno <= line <= (node.end_lineno or line)
        ]  # fmt: skip
        if not around:
            return found
        found.append(f"{found[-1]}.{around[0].name}" if found else around[0].name)
        inside = around[0].body


@pytest.mark.slow
def test_nothing_that_windows_lacks_is_used_unchecked(tmp_path: Path) -> None:
    """Each use of a name that Windows' Python lacks stands where its check is listed, and no entry is left over."""
    uses = [*_missing(*PACKAGES, cache=tmp_path)]
    uses += [use for folder in PACKAGES for file in sorted((ROOT / folder).rglob("*.py")) for use in _loop_calls(file)]
    unchecked, needed = [], set()
    for file, line, name in uses:
        places = {f"{file}: {scope}" for scope in _scopes(file, line)} & _CHECKED.keys()
        needed |= places
        if not places:
            unchecked.append(f"{file}:{line}: {name}")
    assert unchecked == []
    assert _CHECKED.keys() - needed == set(), "nothing there needs a check any more"


@pytest.mark.slow
def test_planted_uses_are_found(tmp_path: Path) -> None:
    """Both searches find what was forgotten before: ``os.pread``, a signal handler of the loop, a unix socket."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import asyncio, os, socket\n"
        "def read(descriptor: int) -> bytes:\n"
        "    return os.pread(descriptor, 1, 0)\n"
        "def stop(loop: asyncio.AbstractEventLoop) -> None:\n"
        "    loop.add_signal_handler(2, loop.stop)\n"
        "def connect() -> socket.socket:\n"
        "    return socket.socket(socket.AF_UNIX)\n"
    )
    found = [*_missing(str(planted), cache=tmp_path / "cache"), *_loop_calls(planted)]
    assert [(line, name) for _, line, name in found] == [(3, "pread"), (7, "AF_UNIX"), (5, "add_signal_handler")]
