"""The failure that lies on this machine."""

from __future__ import annotations

from kdispatch_protocol.errors import KdispatchError

__all__ = ["SetupError"]


class SetupError(KdispatchError):
    """Something in this machine's configuration is wrong; ``hint`` says how to mend exactly that."""

    def __init__(self, code: str, text: str, *, hint: str) -> None:
        super().__init__(code, text)
        self.hint = hint
