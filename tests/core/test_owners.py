"""Who writes what: each field of a stream is written by its own methods, and each state moves by its table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.endpoint.states import LEGS, LegInput, LegState, next_leg
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import LocalProtocolError

ROOT: Final = Path(__file__).parents[2]
_CORE: Final = ROOT / "shared" / "kdispatch_protocol"
#: Every file that knows streams. The two fields of the outbox are written there alone.
_FILES: Final = [
    *sorted((_CORE / "endpoint").rglob("*.py")),
    _CORE / "session" / "outbox.py",
    *sorted((ROOT / "agent" / "kdispatch" / "local").glob("*.py")),
    *(ROOT / "agent" / "kdispatch" / name for name in ("client.py", "host.py", "library.py", "status.py", "uplink.py")),
]
_OUTBOX: Final = {"deficit", "queued"}
#: Fields of other classes that have a name of the stream's.
_OTHERS: Final = {("endpoint.py", "table.session"), ("host.py", "local.host")}


def _written(path: Path) -> Iterator[ast.Attribute]:
    """Each attribute that a file assigns to, but those of a method's own object."""
    for node in ast.walk(ast.parse(path.read_text())):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(one, ast.Attribute) and not (isinstance(one.value, ast.Name) and one.value.id == "self"):
                    yield one


def test_a_stream_is_written_by_its_own_methods() -> None:
    """No function but a method of the stream assigns to a field of it; the outbox has two."""
    found = {
        (path.name, ast.unparse(target))
        for path in _FILES
        for target in _written(path)
        if target.attr in Stream.__slots__ and not (path.name == "outbox.py" and target.attr in _OUTBOX)
    }
    assert found - _OTHERS == set()
    assert ("endpoint.py", "table.session") in found  # the search finds what is there


def test_states_and_legs_move_by_their_tables() -> None:
    """A stream's state and its leg are assigned once each, by what the table answers, besides the first ones."""
    source = ast.parse((_CORE / "endpoint" / "streams.py").read_text())
    values = [
        (node.targets[0].attr, ast.unparse(node.value))
        for node in ast.walk(source)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Attribute)
        and node.targets[0].attr in {"state", "leg"}
    ]
    assert sorted(values) == [
        ("leg", "LegState.NONE"),
        ("leg", "next_leg(self.leg, by)"),
        ("state", "State.OPENING"),
        ("state", "next_state(self.state, by)"),
    ]


@pytest.mark.parametrize("leg", LegState)
@pytest.mark.parametrize("by", LegInput)
def test_legs(leg: LegState, by: LegInput) -> None:
    """A leg takes what its table has, and raises for all else; from each one its number can be given up."""
    if (leg, by) in LEGS:
        assert next_leg(leg, by) is LEGS[leg, by]
    else:
        with pytest.raises(LocalProtocolError):
            next_leg(leg, by)
    assert next_leg(leg, LegInput.LOST) is LegState.NONE
