from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

import pytest

from kdispatch_protocol.endpoint.states import LEGS, TABLE
from kdispatch_protocol.errors import CODES
from kdispatch_relay.switch.routes import ROUTES
from tests.tools import generate_docs


def test_pages_are_current() -> None:
    """The committed pages equal the output of `make docs`."""
    stale = [path.name for path, text in generate_docs.pages().items() if path.read_text() != text]
    assert not stale, "run make docs"


def test_errors_page_has_every_code_once() -> None:
    """Each code has exactly one row on the page of errors."""
    page = generate_docs.errors_page()
    assert [page.count(f"| `{name}` |") for name in CODES] == [1] * len(CODES)


def test_every_part_is_used() -> None:
    """Each generated part has a place in a page."""
    text = "".join(generate_docs.pages().values())
    assert [text.count(f"<!-- generated: {name} -->") for name in generate_docs.PARTS] == [1] * len(generate_docs.PARTS)


@pytest.mark.parametrize(
    ("name", "transitions", "final"),
    [("stream-states", TABLE, {"closed", "reset"}), ("leg-states", LEGS, set()), ("route-states", ROUTES, set())],
)
def test_states_are_drawn_completely(name: str, transitions: Mapping[tuple[Enum, Enum], Enum], final: set[str]) -> None:
    """Read back from the page, table and diagram each have every transition of the code, and no other."""
    part = generate_docs.PARTS[name]()
    coded = {(at.value, by.value, to.value) for (at, by), to in transitions.items()}
    states = {state.value for state in type(next(iter(transitions.values())))}
    rows = set(re.findall(r"(?m)^\| (.+?) \| (.+?) \| (.+?) \|$", part)) - {("state", "event", "next"), ("---",) * 3}
    ids = {id_: state for state, id_ in re.findall(r'state "(.+)" as (\w+)', part)}
    arrows = {(ids[at], by, ids[to]) for at, to, by in re.findall(r"(?m)^ +(\w+) --> (\w+) : (.+)$", part)}
    notes = {(at, by, ids[to]) for to, at, by in re.findall(r"(?m)^ +note left of (\w+) : from (.+), (.+)$", part)}
    assert set(ids.values()) == states
    assert rows == arrows | notes
    assert arrows | {(at, by, to) for _, by, to in notes for at in states - final} == coded
    assert {ids[at] for at in re.findall(r"(?m)^ +(\w+) --> \[\*\]$", part)} == final
