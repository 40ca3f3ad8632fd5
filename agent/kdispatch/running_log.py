"""The log of a running agent: silent in the library; the command line passes structlog's logger."""

from __future__ import annotations

from typing import Any, Final, Protocol

__all__ = ["SILENT", "RunningLog"]


class RunningLog(Protocol):
    """The part of a structlog logger that agents use: a sentence, and fields."""

    def isEnabledFor(self, level: int) -> Any:  # noqa: N802 - the standard library's name for it
        """Whether records of this level (``logging.DEBUG``) are written, and so worth formatting."""
        ...

    def debug(self, event: str, **fields: Any) -> Any:
        """Details that only matter when looking for a problem."""
        ...

    def info(self, event: str, **fields: Any) -> Any:
        """Information for the user."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:
        """Something went wrong, and the agent continues."""
        ...


class _Silent:
    def isEnabledFor(self, level: int) -> bool:  # noqa: ARG002, N802
        return False

    def debug(self, event: str, **fields: Any) -> None:
        pass

    info = warning = debug


SILENT: Final[RunningLog] = _Silent()
