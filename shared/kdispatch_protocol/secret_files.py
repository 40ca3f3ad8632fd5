"""Secrets that people and systems put into files: which text the bytes are, and whose the file's mode is to mend."""

from __future__ import annotations

import codecs
from typing import Final

__all__ = ["mode_is_given", "secret_text"]

#: What Windows' programs write first: PowerShell's ``>`` UTF-16, editors UTF-8 with a mark.
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_WRITERS: Final = 0o222


def secret_text(data: bytes) -> str:
    """The text in ``data`` without marks of its encoding and space around it; what is no text is in it as U+FFFD."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            data = data[len(mark) :]
            # A line's end may have been cut in its middle, as it is two bytes.
            data = data[: len(data) & ~1] if encoding != "utf-8" else data
            return data.decode(encoding, "replace").strip()
    return data.decode("utf-8", "replace").strip()


def mode_is_given(mode: int, owner: int, *, read_only: bool) -> bool:
    """Whether a mount gives a file its mode, which this user can't change or was not asked about.

    Docker and Kubernetes mount secrets on a ``read_only`` file system, or as root's with a mode that lets nobody
    write, such as 0444. In the container there is nobody else. No editor or shell makes a file of such a mode.
    """
    return read_only or (owner == 0 and not mode & _WRITERS)
