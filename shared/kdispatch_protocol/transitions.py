"""Tables of states: the error where such a table has no answer.

A table's own function looks the transition up, as an open takes a dozen of them.
"""

from __future__ import annotations

from enum import StrEnum

from kdispatch_protocol.errors import LocalProtocolError

__all__ = ["no_transition"]


def no_transition(what: str, state: StrEnum, by: StrEnum) -> LocalProtocolError:
    """The error for an input that the state of this ``what`` can't take."""
    return LocalProtocolError(f"A {what} that is {state.value!r} can't take {by.value!r}.")
