"""A terminal screen that shows successive texts in the same place, without flicker."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Self

__all__ = ["Screen"]

# DEC's private modes and ECMA-48's sequences, which all current terminals support.
_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # the alternate screen, so that the old content returns; no cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_TO_THE_LINES_END: Final = "\x1b[K"
_BELOW: Final = "\x1b[J"
#: What ends a program that does not handle it. Ctrl-Break is a signal on Windows only.
_SIGNALS: Final[list[int]] = [getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)]


class Screen:
    """Use it as a context manager, which always restores the terminal; SIGTERM and Ctrl-Break restore it, too."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, _leave) for number in _SIGNALS}
        self._write(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(_LEAVE)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def height(self) -> int:
        """The number of lines that fit now."""
        return shutil.get_terminal_size().lines

    def show(self, lines: Sequence[str]) -> None:
        """Replace the last lines by these, as far as they fit. They must not contain control characters."""
        width, height = shutil.get_terminal_size()
        if len(lines) > height:
            lines = [*lines[: height - 1], f"and {len(lines) - height + 1} more lines"]
        # Each line overwrites the previous one, so nothing is ever blank. All in one write; the last line has no end,
        # as that would scroll.
        text = "\r\n".join(f"{line[:width]}{_TO_THE_LINES_END}" for line in lines)
        self._write(f"{_HOME}{text}{_BELOW}")

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
