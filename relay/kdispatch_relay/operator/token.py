"""The operator's token: a secret in a file that allows reading the relay's state from other machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.secret_files import mode_is_given, secret_text
from kdispatch_protocol.tokens import token_digest

__all__ = ["operator_digest", "read_operator_token"]

_LEAST: Final = 32  # characters: 16 random bytes in hexadecimal
_MOST: Final = 256  # as for every token
_MOST_BYTES: Final = 1024  # bytes to read: enough for any token in UTF-16, with a byte order mark and a line end
_PRIVATE: Final = 0o077


def operator_digest(file: Path | None) -> bytes | None:
    """SHA-256 of the token in ``file``; ``None`` without a file. Raises the errors of :func:`read_operator_token`."""
    return None if file is None else token_digest(read_operator_token(file))


def read_operator_token(file: Path) -> str:
    """The token; raises ``bad_request`` if the file is unreadable, readable by others, or has no valid token."""
    try:
        with file.open("rb") as opened:
            exposed = _is_exposed(opened.fileno())
            text = secret_text(opened.read(_MOST_BYTES))
    except OSError as error:
        text = f"The operator's token can't be read from {file}: {error.strerror}."
        raise KdispatchError("bad_request", text) from error
    if not text.isascii():
        raise KdispatchError("bad_request", f"The operator's token can't be read from {file}: it is not text.")
    if exposed:
        raise KdispatchError("bad_request", f"Others can read the operator's token in {file}: chmod 600 {file}.")
    if not (_LEAST <= len(text) <= _MOST and text.isprintable() and " " not in text):
        text = f"The operator's token in {file} must be one word of {_LEAST} to {_MOST} characters."
        raise KdispatchError("bad_request", text)
    return text


def _is_exposed(descriptor: int) -> bool:
    """Whether other users can read this user's file, and this user can change that."""
    if os.name != "posix":
        return False
    status = os.fstat(descriptor)
    read_only = bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
    ours = status.st_uid == os.getuid()
    return (
        ours
        and bool(status.st_mode & _PRIVATE)
        and not mode_is_given(status.st_mode, status.st_uid, read_only=read_only)
    )
