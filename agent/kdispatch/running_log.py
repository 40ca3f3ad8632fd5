"""What a running agent tells: who uses the library hears nothing, the command line hands in structlog's logger."""

from __future__ import annotations

from typing import Any, Final, Protocol

__all__ = ["SILENT", "RunningLog"]


class RunningLog(Protocol):
    """The part of a structlog logger that agents use: a sentence, and fields."""

    def isEnabledFor(self, level: int) -> Any:  # noqa: N802 - the standard library's name for it
        """Whether what has this level (``logging.DEBUG``) is written at all, and worth being put together."""
        ...

    def debug(self, event: str, **fields: Any) -> Any:
        """What only somebody who looks for something wants to know."""
        ...

    def info(self, event: str, **fields: Any) -> Any:
        """What a person should know."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:
        """Something went wrong, and the agent goes on."""
        ...


class _Silent:
    def isEnabledFor(self, level: int) -> bool:  # noqa: ARG002, N802
        return False

    def debug(self, event: str, **fields: Any) -> None:
        pass

    info = warning = debug


SILENT: Final[RunningLog] = _Silent()
