"""Files with secrets: decode their text, and tell whether this user can change the file's mode."""

from __future__ import annotations

import codecs
from typing import Final

__all__ = ["mode_is_given", "secret_text"]

#: Byte order marks that Windows programs write: PowerShell's ``>`` writes UTF-16, editors write UTF-8 with a mark.
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_WRITERS: Final = 0o222


def secret_text(data: bytes) -> str:
    """Decode ``data`` and strip the byte order mark and surrounding space; undecodable bytes become U+FFFD."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            data = data[len(mark) :]
            # The reader may have cut the last character in half, as each has two bytes.
            data = data[: len(data) & ~1] if encoding != "utf-8" else data
            return data.decode(encoding, "replace").strip()
    return data.decode("utf-8", "replace").strip()


def mode_is_given(mode: int, owner: int, *, read_only: bool) -> bool:
    """Whether a mount sets the mode of the file, so that this user did not choose it or can't change it.

    Docker and Kubernetes mount secrets on a ``read_only`` file system, or owned by root with a mode without write
    permission, such as 0444. The container has no other users. Editors and shells do not create files with such
    modes.
    """
    return read_only or (owner == 0 and not mode & _WRITERS)
