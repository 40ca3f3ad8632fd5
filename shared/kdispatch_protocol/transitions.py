"""Looks a transition up in a table of states, for each kind of state that has a table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from kdispatch_protocol.errors import LocalProtocolError

__all__ = ["transition"]

_S = TypeVar("_S", bound=Enum)
_I = TypeVar("_I", bound=Enum)


def transition(table: Mapping[tuple[_S, _I], _S], what: str, state: _S, by: _I) -> _S:
    """The table's answer; raises ``LocalProtocolError``, which names ``what`` has the state, where it has none."""
    try:
        return table[state, by]
    except KeyError:
        raise LocalProtocolError(f"A {what} that is {state.value!r} can't take {by.value!r}.") from None
