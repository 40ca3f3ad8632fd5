"""An agent in its own process, which outlives the command that started it and its terminal.

The command passes the token through a pipe, so no argument or variable of the
new process holds one. The new process writes one line of JSON to its standard
output when it is up or has failed, and keeps no descriptor of the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kdispatch.machine.operating_system import HERE, SpawnOptions
from kdispatch.machine.private_files import make_private, open_private, writing
from kdispatch.machine.records import agents_directory, log_file, new_id

__all__ = ["BackgroundFailed", "BoundedLog", "Report", "read_token", "start"]

#: Size of a log at which it is renamed to ``.log.1`` and a new one starts.
LOG_BYTES: Final = 4 * 1024 * 1024
_TAIL_LINES: Final = 5
_TAIL_BYTES: Final = 4096
_END_WAIT: Final = 5.0  # seconds for a process that was asked to end before it was up
_TOKEN_LINE: Final = 4096


class BackgroundFailed(Exception):  # noqa: N818 - the error was reported elsewhere
    """The agent did not come up: ``error`` is what commands print, ``status`` the exit status of its process."""

    def __init__(self, error: Mapping[str, Any], status: int) -> None:
        super().__init__(error["text"])
        self.error = error
        self.status = status


def start(arguments: Sequence[str], token: str | None, variables: Mapping[str, str]) -> dict[str, Any]:
    """Start ``kdispatch agent ARGUMENTS`` in the background with these variables; returns its result when it is up.

    Raises :class:`BackgroundFailed`, and ``SetupError`` if its log can't be written.
    """
    agent = new_id()
    log = log_file(agent)
    directory = agents_directory()
    make_private(directory, variable="KDISPATCH_STATE_DIR")
    with writing(directory, variable="KDISPATCH_STATE_DIR"):
        descriptor = open_private(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
    # -P: never import from the current directory.
    command = [sys.executable, "-P", "-m", "kdispatch", "agent", *arguments, "--background", agent]
    environment = {name: value for name, value in os.environ.items() if name != "KDISPATCH_TOKEN"}
    environment |= variables
    try:
        process = _spawn(command, environment, descriptor)
    finally:
        os.close(descriptor)
    try:
        said = _ask(process, token)
    except BaseException:  # mostly Ctrl-C: otherwise the agent would run unnoticed
        _end(process)
        HERE.remove(log)
        raise
    if "result" in said:
        # Do not wait for the process: it continues to run.
        process.returncode = 0
        result: dict[str, Any] = said["result"]
        return result
    status = process.wait()
    if "error" in said:
        HERE.remove(log)  # the error has everything that is in it
        raise BackgroundFailed(said["error"], status if status > 0 else 1)
    text = f"The agent ended at once (status {status}). Its log ends with: {_tail(log) or 'nothing'}"
    error = {"code": None, "text": text, "hop": "you", "hint": f"See {log}"}
    raise BackgroundFailed(error, status if status > 0 else 1)


def _spawn(command: Sequence[str], environment: Mapping[str, str], errors_to: int) -> subprocess.Popen[bytes]:
    """Start the process by the first options that the system allows."""
    pipe = subprocess.PIPE
    *preferred, last = HERE.spawn_options()

    def start(options: SpawnOptions) -> subprocess.Popen[bytes]:
        # The command is ours; the user only typed the values of options.
        return subprocess.Popen(  # noqa: S603
            command, stdin=pipe, stdout=pipe, stderr=errors_to, env=environment, **options
        )

    for options in preferred:
        with contextlib.suppress(PermissionError):
            return start(options)
    return start(last)


def _ask(process: subprocess.Popen[bytes], token: str | None) -> dict[str, Any]:
    """Pass the token, and wait for the one line; empty if the process ended without it."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout, contextlib.suppress(BrokenPipeError):
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(f"{token or ''}\n".encode())
        with contextlib.suppress(ValueError):
            said = json.loads(process.stdout.readline())
            return said if isinstance(said, dict) else {}
    return {}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_WAIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-_TAIL_LINES:])
    return ""


# --- in the new process ----------------------------------------------------------------------------


def read_token() -> str | None:
    """Read the token from the starting command."""
    return sys.stdin.buffer.readline(_TOKEN_LINE).decode().strip() or None


class Report:
    """The one line for the command that started this process."""

    def __init__(self) -> None:
        self.sent = False

    def send(self, what: str, data: Mapping[str, Any]) -> bool:
        """Send the line once; returns whether that worked. Then this process is detached from the command."""
        if self.sent:
            return True
        self.sent = True
        line = json.dumps({what: data}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(1, line) :]
        except OSError:  # the command is gone
            return False
        finally:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            os.close(null)
        return True


class BoundedLog:
    """Writes standard error to a log file that is replaced when it is full; the previous one is kept."""

    def __init__(self, path: Path, most: int = LOG_BYTES, descriptor: int = 2) -> None:
        self._path = path
        self._most = most
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        """Append to the log; a :data:`kdispatch_protocol.process.unblocked.Write`. Raises ``OSError``."""
        with contextlib.suppress(OSError):  # if no new file can be created, the open one is used further
            if os.fstat(self._descriptor).st_size + len(data) > self._most:
                # The descriptor stays the same: the interpreter writes tracebacks to it, too.
                HERE.start_anew(self._descriptor, self._path, self._path.with_suffix(".log.1"))
        return os.write(self._descriptor, data)
