"""Directories and files for this user only, written completely or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kdispatch.machine.operating_system import HERE
from kdispatch.setup_error import SetupError

__all__ = ["make_private", "open_private", "private_lock", "write_private", "writing"]

LOCK_FILE: Final = "lock"
#: Seconds to wait for another kdispatch that writes here; one write takes milliseconds.
LOCK_WAIT: Final = 10.0
#: Errors of locking on a file system without locks, or whose lock server does not answer.
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_CONFIGURATION: Final = "KDISPATCH_CONFIG_DIR"


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` completely or not at all, readable by its owner only, and on disk on return."""
    # A configuration file that is a symbolic link stays one: its target is replaced.
    target = Path(os.path.realpath(path))
    make_private(target.parent)
    with writing(target.parent):
        # mkstemp creates the file with mode 0600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            HERE.replace(Path(temporary), target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        HERE.sync_directory(target.parent)


def open_private(path: Path, flags: int) -> int:
    """Open a file, for its owner only if this creates it; returns the descriptor. Raises ``OSError``."""
    return os.open(path, flags | HERE.open_flags, 0o600)


@contextlib.contextmanager
def private_lock(directory: Path, *, variable: str = _CONFIGURATION) -> Iterator[None]:
    """Hold ``directory``'s lock against other processes and threads; raises :class:`SetupError` after ten seconds.

    ``variable`` is the environment variable that names the directory.
    """
    make_private(directory, variable=variable)
    path = directory / LOCK_FILE
    deadline = time.monotonic() + LOCK_WAIT
    with writing(directory, variable=variable):
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        while not _locked(descriptor, directory, variable):
            if time.monotonic() > deadline:
                text = f"Another process has held {path} for {LOCK_WAIT:g} s."
                hint = (
                    "Find it in resmon.exe (Associated Handles)." if HERE.powershell else f"See which one: fuser {path}"
                )
                raise SetupError("busy", text, hint=hint)
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # this releases the lock


def make_private(directory: Path, *, variable: str = _CONFIGURATION) -> None:
    """Create the directory if it is missing, for its owner only."""
    with writing(directory, variable=variable):
        # One by one: mkdir would create parents with the umask's mode, which may let everybody write.
        for missing in [one for one in (directory, *directory.parents) if not one.exists()][::-1]:
            missing.mkdir(mode=0o700, exist_ok=True)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


@contextlib.contextmanager
def writing(directory: Path, *, variable: str = _CONFIGURATION) -> Iterator[None]:
    """Report a failure to write below the directory as a :class:`SetupError`."""
    try:
        yield
    except OSError as error:
        what, hint = f"{directory} cannot be written: {error.strerror or error}.", "Check its owner and mode, or name"
        if error.errno in _NO_LOCKS:
            what, hint = f"The file system of {directory} has no locks: {error.strerror or error}.", "Name"
        raise SetupError("bad_request", what, hint=f"{hint} another directory in {variable}.") from error


def _locked(descriptor: int, directory: Path, variable: str) -> bool:
    with writing(directory, variable=variable):
        return HERE.try_lock(descriptor)
