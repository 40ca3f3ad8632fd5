from __future__ import annotations

import itertools

import pytest

from kdispatch_protocol.endpoint.states import END_STATES, SENDING, TABLE, Input, State, next_state
from kdispatch_protocol.errors import LocalProtocolError


def walk(*inputs: Input) -> State:
    """Where a new end stands after these."""
    state = State.OPENING
    for by in inputs:
        state = next_state(state, by)
    return state


@pytest.mark.parametrize(("state", "by"), TABLE)
def test_what_the_table_has(state: State, by: Input) -> None:
    """Where the table has an answer, that is the next state."""
    assert next_state(state, by) is TABLE[state, by]


@pytest.mark.parametrize(("state", "by"), sorted(set(itertools.product(State, Input)) - set(TABLE)))
def test_what_the_table_lacks(state: State, by: Input) -> None:
    """Everything else is a defect of ours, and named: the state and what it can't take."""
    with pytest.raises(LocalProtocolError) as error:
        next_state(state, by)
    assert state.value in error.value.text
    assert by.value in error.value.text


@pytest.mark.parametrize("state", sorted(END_STATES))
def test_end_states_absorb(state: State) -> None:
    """Nothing leads out of an end state."""
    assert not [by for at, by in TABLE if at is state]


def test_every_state_is_reachable() -> None:
    """Each state is reached from the first, and from each one an end is reached."""
    reached = {State.OPENING}
    for _ in State:
        reached |= {TABLE[at, by] for at, by in TABLE if at in reached}
    assert reached == set(State)
    for state in State:
        assert state in END_STATES or next_state(state, Input.ABORTED) is State.RESET


def test_sending_states() -> None:
    """Data may be sent just where our FIN is yet to be sent and the stream is open."""
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
    """In whatever order the two directions end, the stream is closed when both have, and not before."""
    assert walk(*opening, *inputs) is State.CLOSED
    for count in range(len(inputs)):
        assert walk(*opening, *inputs[:count]) not in END_STATES
