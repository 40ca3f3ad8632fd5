"""Failures with their own hint: on this machine, or of a device on the path to the relay."""

from __future__ import annotations

from kdispatch_protocol.errors import KdispatchError

__all__ = ["HintedError", "SetupError"]


class HintedError(KdispatchError):
    """``hint`` says how to fix this failure, if the code's own hint does not."""

    def __init__(self, code: str, text: str, *, hint: str) -> None:
        super().__init__(code, text)
        self.hint = hint


class SetupError(HintedError):
    """This machine's configuration is wrong, whatever the hop of the code."""
