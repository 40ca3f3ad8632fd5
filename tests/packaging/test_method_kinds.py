"""Methods of the five classes that others drive are of four kinds, which their names show."""

from __future__ import annotations

import re
from typing import Final

import pytest

from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.table import StreamTable
from kdispatch_protocol.session.aio.link import Link
from kdispatch_relay.switch.switch import Switch

_INPUTS: Final = ("receive_", "handle_")
_OUTPUTS: Final = ("take_", "next_")
#: Questions with an argument, which no property can answer, and imperatives that look like something else.
_QUESTIONS: Final = {(StreamTable, "room"), (Link, "may_send")}
_IMPERATIVES: Final = {(EndpointDriver, "at_once"), (StreamTable, "if_finished")}


@pytest.mark.parametrize("cls", [Endpoint, StreamTable, Switch, EndpointDriver, Link])
def test_a_name_shows_the_kind(cls: type) -> None:
    """Each public method is an input or an output by its name, or a command: its first word is no past participle."""
    names = [name for name, member in vars(cls).items() if callable(member) and not name.startswith("_")]
    assert len(names) > 5
    for name in names:
        if name.startswith((*_INPUTS, *_OUTPUTS)) or (cls, name) in _QUESTIONS | _IMPERATIVES:
            continue
        assert not re.search(r"(ed|lost|arrived|taken|gone)$|_(to|of|is|has)_", name), f"{cls.__name__}.{name}"
        assert vars(cls)[name].__doc__, f"{cls.__name__}.{name} does not say what it does"
