from __future__ import annotations

import itertools

import pytest

from kdispatch_protocol.endpoint.states import END_STATES, SENDING, TABLE, Input, State, next_state
from kdispatch_protocol.errors import LocalProtocolError


def walk(*inputs: Input) -> State:
    """The state of a new end after these events."""
    state = State.OPENING
    for by in inputs:
        state = next_state(state, by)
    return state


@pytest.mark.parametrize(("state", "by"), TABLE)
def test_what_the_table_has(state: State, by: Input) -> None:
    """For a transition in the table, the next state is the table's."""
    assert next_state(state, by) is TABLE[state, by]


@pytest.mark.parametrize(("state", "by"), sorted(set(itertools.product(State, Input)) - set(TABLE)))
def test_what_the_table_lacks(state: State, by: Input) -> None:
    """For any other event, the error is an internal defect that names the state and the event."""
    with pytest.raises(LocalProtocolError) as error:
        next_state(state, by)
    assert state.value in error.value.text
    assert by.value in error.value.text


@pytest.mark.parametrize("state", sorted(END_STATES))
def test_end_states_absorb(state: State) -> None:
    """No transition leaves an end state."""
    assert not [by for at, by in TABLE if at is state]


def test_every_state_is_reachable() -> None:
    """Each state can be reached from the first, and from each state an end state can be reached."""
    reached = {State.OPENING}
    for _ in State:
        reached |= {TABLE[at, by] for at, by in TABLE if at in reached}
    assert reached == set(State)
    for state in State:
        assert state in END_STATES or next_state(state, Input.ABORTED) is State.RESET


def test_sending_states() -> None:
    """Data may be sent exactly while the stream is open and our FIN was not sent."""
    assert {at for at, by in TABLE if by is Input.FIN_SENT} == SENDING


@pytest.mark.parametrize(
    "inputs",
    [
        (Input.FIN_SENT, Input.FIN_ACKED, Input.FIN_ARRIVED),
        (Input.FIN_SENT, Input.FIN_ARRIVED, Input.FIN_ACKED),
        (Input.FIN_ARRIVED, Input.FIN_SENT, Input.FIN_ACKED),
    ],
)
@pytest.mark.parametrize("opening", [(Input.OPENED,), (Input.TRIED, Input.TRIED, Input.OPENED)])
def test_the_ways_to_close(opening: tuple[Input, ...], inputs: tuple[Input, ...]) -> None:
    """In any order of the two ends, the stream is closed when both directions have ended, and not before."""
    assert walk(*opening, *inputs) is State.CLOSED
    for count in range(len(inputs)):
        assert walk(*opening, *inputs[:count]) not in END_STATES
