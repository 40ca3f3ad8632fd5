"""No call may block an event loop: blockbuster's wrappers, with a record of the calls that they refuse.

A refused call raises at its place, where product code may treat the exception as a failed connection. So each is
also written to a file in the folder that KDISPATCH_GUARD names, and the test fails if a file has an entry.
Processes that a test starts have the same guard, by ``site/sitecustomize.py``.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Final, NamedTuple

from blockbuster import BlockBuster, BlockBusterFunction, blockbuster

__all__ = ["ALLOWED", "FOLDER", "PRODUCT", "SITE", "Allowed", "make_guard"]

#: The variable with the folder of the records; without it no call is guarded.
FOLDER: Final = "KDISPATCH_GUARD"
SITE: Final = Path(__file__).with_name("site")
#: In a test's own process only calls from these packages count: tests may read a file on their loop.
PRODUCT: Final = ("kdispatch", "kdispatch_relay", "kdispatch_protocol")


class Allowed(NamedTuple):
    """A call, or with ``""`` every call, that may block in one function of one file and below it, with the reason."""

    call: str
    file: str
    function: str
    reason: str


ALLOWED: Final = (
    Allowed("", "kdispatch_relay/store/upgrade.py", "upgrade_tables", "once, before the relay listens"),
    Allowed("", "kdispatch/cli/output.py", "_write", "a command's few lines, which somebody waits for"),
    Allowed("", "logging/__init__.py", "emit", "a line to stderr, which nobody leaves unread"),
    Allowed("", "<frozen importlib._bootstrap>", "_find_and_load", "modules are loaded once, where first needed"),
    Allowed("", "asyncpg/connect_utils.py", "_parse_connect_arguments", "looks into ~, at each of a dozen connects"),
    # Commands access their small files before an agent carries data, or never carry data.
    Allowed("", "kdispatch/settings.py", "load_settings", "before an agent carries anything"),
    Allowed("", "kdispatch/settings.py", "remember_relay", "sign-up and login carry nothing"),
    Allowed("", "kdispatch/credentials.py", "_read", "before an agent carries anything"),
    Allowed("", "kdispatch/credentials.py", "given_token", "before an agent carries anything"),
    Allowed(
        "",
        "kdispatch/machine/private_files.py",
        "private_lock",
        "sign-up and its like carry nothing; agents use a thread",
    ),
    Allowed("", "kdispatch/machine/private_files.py", "write_private", "sign-up and its like carry nothing"),
    Allowed("os.stat", "asyncio/streams.py", "start_unix_server", "uvloop's look at its own socket, once at a start"),
    Allowed(
        "", "kdispatch/machine/control_server.py", "__aexit__", "on Python 3.13 uvloop removes its socket at the end"
    ),
    Allowed("", "importlib/metadata/__init__.py", "version", "the package's own version, once at a start"),
    Allowed("", "kdispatch/cli/account.py", "main", "a short command's loop serves nobody else"),
    Allowed("", "kdispatch/cli/login.py", "main", "a short command's loop serves nobody else"),
    Allowed("", "kdispatch/cli/service.py", "main", "a short command's loop serves nobody else"),
)

#: Calls that blockbuster does not cover.
_MORE: Final = ("socket.getaddrinfo", "os.fsync")


class _Refused(blockbuster.BlockingError):
    """A blocking call on an event loop; creating the exception records the call."""

    def __init__(self, func: str) -> None:
        super().__init__(func)
        if folder := os.environ.get(FOLDER):
            stack = "".join(traceback.format_stack()[:-2])
            # The wrapper allows calls made while it runs, including this one.
            with (Path(folder) / str(os.getpid())).open("a") as file:
                file.write(f"Blocking call to {func} on an event loop, in process {os.getpid()}:\n{stack}\n")


def make_guard(*modules: str) -> BlockBuster:
    """Return an inactive guard for calls from ``modules``, or from any module."""
    # When they refuse a call, the wrappers look the name up in their own module.
    blockbuster.BlockingError = _Refused  # type: ignore[misc]
    scanned = list(modules) or None
    guard = BlockBuster(scanned)
    for name in _MORE:
        guard.functions[name] = BlockBusterFunction(None, name, scanned_modules=scanned)
    # Pure arithmetic, except for the current folder, and os.getcwd covers that.
    del guard.functions["os.path.abspath"]
    # At exit the interpreter flushes its buffers after this wrapper's module is gone, which would crash.
    del guard.functions["io.BufferedWriter.write"]
    for allowed in ALLOWED:
        for name in [allowed.call] if allowed.call else guard.functions:
            guard.functions[name].can_block_in(allowed.file, allowed.function)
    return guard
