"""Failures that have a hint of their own: those that lie on this machine, and those of a box on the way."""

from __future__ import annotations

from kdispatch_protocol.errors import KdispatchError

__all__ = ["HintedError", "SetupError"]


class HintedError(KdispatchError):
    """``hint`` says how to mend exactly this, where the code's own can't."""

    def __init__(self, code: str, text: str, *, hint: str) -> None:
        super().__init__(code, text)
        self.hint = hint


class SetupError(HintedError):
    """Something in this machine's configuration is wrong, whatever the hop of the code."""
