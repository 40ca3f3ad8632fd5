"""No call blocks an event loop: blockbuster's wrappers, which also write down what they refuse.

A refused call raises where it is made, where product code may take the exception for a failed connection. So each is
also kept in a file of the folder that KDISPATCH_GUARD names, and the test that finds one there fails. Processes that
a test starts have the same guard, by ``site/sitecustomize.py``.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Final, NamedTuple

from blockbuster import BlockBuster, BlockBusterFunction, blockbuster

__all__ = ["ALLOWED", "FOLDER", "PRODUCT", "SITE", "Allowed", "make_guard"]

#: The variable with the folder for what is refused; without it nothing is guarded.
FOLDER: Final = "KDISPATCH_GUARD"
SITE: Final = Path(__file__).with_name("site")
#: In a test's own process only calls that these make count: tests may read a file on their loop.
PRODUCT: Final = ("kdispatch", "kdispatch_relay", "kdispatch_protocol")


class Allowed(NamedTuple):
    """A call, or with ``""`` each call, that may block in one function of one file and below it, and why."""

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
    # Commands read and write their few small files before an agent carries anything, or carry nothing at all.
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

#: Calls that blockbuster does not know.
_MORE: Final = ("socket.getaddrinfo", "os.fsync")


class _Refused(blockbuster.BlockingError):
    """A blocking call on an event loop; written down as it is made."""

    def __init__(self, func: str) -> None:
        super().__init__(func)
        if folder := os.environ.get(FOLDER):
            stack = "".join(traceback.format_stack()[:-2])
            # The wrapper lets through what is called while it works, this too.
            with (Path(folder) / str(os.getpid())).open("a") as file:
                file.write(f"Blocking call to {func} on an event loop, in process {os.getpid()}:\n{stack}\n")


def make_guard(*modules: str) -> BlockBuster:
    """A guard, not yet active, for calls that ``modules`` make, or whoever does."""
    # The wrappers look the name up in their module when they refuse a call.
    blockbuster.BlockingError = _Refused  # type: ignore[misc]
    scanned = list(modules) or None
    guard = BlockBuster(scanned)
    for name in _MORE:
        guard.functions[name] = BlockBusterFunction(None, name, scanned_modules=scanned)
    # It is arithmetic, but for the current folder, which is asked for by os.getcwd.
    del guard.functions["os.path.abspath"]
    # The interpreter writes out its buffers at its very end, when this wrapper's module is gone, and crashes.
    del guard.functions["io.BufferedWriter.write"]
    for allowed in ALLOWED:
        for name in [allowed.call] if allowed.call else guard.functions:
            guard.functions[name].can_block_in(allowed.file, allowed.function)
    return guard
