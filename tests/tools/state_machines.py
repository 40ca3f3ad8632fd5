"""The tables of states as parts of pages: a diagram that GitHub draws, and a table of the same transitions."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import TypeVar

from kdispatch_protocol.endpoint.states import END_STATES, LEGS, TABLE, LegState, State
from kdispatch_relay.switch.routes import ROUTES, RouteState
from tests.tools.markdown import table

__all__ = ["leg_states", "machine", "route_states", "stream_states"]

_S = TypeVar("_S", bound=Enum)
_I = TypeVar("_I", bound=Enum)


def stream_states() -> str:
    """The states of one end of a stream."""
    return machine(TABLE, State.OPENING, END_STATES)


def leg_states() -> str:
    """The states of an end's leg."""
    return machine(LEGS, LegState.NONE)


def route_states() -> str:
    """The states of an OPEN at the relay."""
    return machine(ROUTES, RouteState.ASKING)


def machine(transitions: Mapping[tuple[_S, _I], _S], first: _S, final: AbstractSet[_S] = frozenset()) -> str:
    """Return the diagram and the table of a machine that begins in ``first``.

    Where an event leads to one state from every state that is not final, the diagram has a note in place of the
    arrows, and the table one row.
    """
    states = list(type(first))
    common = _common(transitions, set(states) - final)
    single = [(at, by, after) for (at, by), after in transitions.items() if by not in common]
    lines = ["stateDiagram-v2", *(f'state "{state.value}" as {_id(state)}' for state in states)]
    lines += [f"[*] --> {_id(first)}"]
    lines += [f"{_id(at)} --> {_id(after)} : {by.value}" for at, by, after in single]
    lines += [f"{_id(state)} --> [*]" for state in states if state in final]
    ends = " and ".join(str(state.value) for state in states if state in final)
    any_of = f"any but {ends}" if ends else "any"
    lines += [f"note left of {_id(after)} : from {any_of}, {by.value}" for by, after in common.items()]
    rows = [(str(at.value), str(by.value), str(after.value)) for at, by, after in single]
    rows += [(any_of, str(by.value), str(after.value)) for by, after in common.items()]
    diagram = "\n    ".join(lines)
    return f"```mermaid\n{diagram}\n```\n\n{table(('state', 'event', 'next'), rows)}"


def _common(transitions: Mapping[tuple[_S, _I], _S], states: AbstractSet[_S]) -> dict[_I, _S]:
    """The events that lead from each of these states to one and the same."""
    found: dict[_I, _S] = {}
    for by in dict.fromkeys(by for _, by in transitions):
        after = {at: to for (at, event), to in transitions.items() if event is by}
        if set(after) == states and len(set(after.values())) == 1:
            found[by] = next(iter(after.values()))
    return found


def _id(state: Enum) -> str:
    """A state's name in the diagram, which allows no space there."""
    return str(state.value).replace(" ", "_")
