"""The operator's token: a secret in a file, by which the relay's inside may be looked at from other machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_digest

__all__ = ["operator_digest", "read_operator_token"]

_LEAST: Final = 32  # characters: 16 random bytes in hexadecimal
_MOST: Final = 256  # as with every token
_PRIVATE: Final = 0o077


def operator_digest(file: Path | None) -> bytes | None:
    """SHA-256 of the token in ``file``, if there is one to be read; raises as :func:`read_operator_token` does."""
    return None if file is None else token_digest(read_operator_token(file))


def read_operator_token(file: Path) -> str:
    """The token; raises ``bad_request`` for a file that can't be read, that others can read, or that holds none."""
    try:
        mode = file.stat().st_mode
        text = file.read_bytes()[: _MOST + 2].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise KdispatchError("bad_request", f"The operator's token can't be read from {file}: {reason}.") from error
    if os.name == "posix" and mode & _PRIVATE:
        raise KdispatchError("bad_request", f"Others can read the operator's token in {file}: chmod 600 {file}.")
    if not (_LEAST <= len(text) <= _MOST and text.isprintable() and " " not in text):
        text = f"The operator's token in {file} must be one word of {_LEAST} to {_MOST} characters."
        raise KdispatchError("bad_request", text)
    return text
