"""The wire format is written twice on purpose, in the code and in docs/protocol.md; these tests compare them."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from kdispatch_protocol.endpoint.states import TABLE, State
from kdispatch_protocol.errors import CODES
from kdispatch_protocol.wire import frames, messages

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
_FLAGS = {"blocked": frames.BLOCKED, "marked": frames.MARKED, "fin": frames.FIN_ARRIVED}


def test_types_flags_and_lengths_are_the_codes() -> None:
    """Each row of the table of types states what the decoder enforces."""
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \| ([^|]+) \| ([\d-]+) \| (yes|no|either) \|", PAGE, re.MULTILINE)
    assert {int(number): name for number, name, *_ in rows} == frames.TYPE_NAMES
    for number, _, flags, length, stream in rows:
        low, _, high = length.partition("-")
        bits = sum(_FLAGS[word] for word in re.findall(r"`(\w+)`", flags))
        numbered = {"yes": True, "no": False, "either": None}[stream]
        assert frames._RULES[int(number)] == (int(low), int(high or low), bits, numbered)


def test_json_keys_are_the_codes() -> None:
    """Each JSON payload has the keys of its class, and the same ones are required."""
    rows = re.findall(r"^\| ([A-Z]*) ?\| `(\w+)` \| [^|]+ \| ?([^|]*)\|$", PAGE, re.MULTILINE)
    # The entries of an ATTACH have a table of their own.
    entries = re.findall(r"^\| `(\w+)` \| [^|]+ \| ?([^|]*)\|$", PAGE, re.MULTILINE)
    rows += [("AttachEntry", *entries[0]), *(("", *entry) for entry in entries[1:])]
    written: dict[str, dict[str, bool]] = {}
    frame = ""
    for name, key, needed in rows:
        frame = name or frame
        written.setdefault(frame if frame == "AttachEntry" else frame.capitalize(), {})[key] = (
            needed.strip() == "required"
        )
    assert len(written) == 11
    for name, keys in written.items():
        fields = dataclasses.fields(getattr(messages, name))
        coded = {
            item.name: item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            for item in fields
        }
        assert keys == coded, name


#: Where the relay answers an OPEN or an OFFER: files, and for those with other answers the functions.
_RELAY = Path(__file__).parents[2] / "relay" / "kdispatch_relay"
_OF_BOTH = {"auth.py": {"identify", "_hidden"}, "gate/access.py": {"_answer"}}
_OF_OPENS = _OF_BOTH | {"switch/opens.py": set(), "switch/claims.py": set()}
_OF_OFFERS = _OF_BOTH | {"switch/offers.py": set(), "auth.py": {"identify", "_hidden", "may_host"}}


def _codes_of(places: dict[str, set[str]]) -> set[str]:
    """The codes that stand in these functions, or in the whole file if none is named."""
    found = set()
    for name, functions in places.items():
        parts: list[ast.AST] = [ast.parse((_RELAY / name).read_text())]
        if functions:
            kinds = ast.FunctionDef | ast.AsyncFunctionDef
            parts = [node for node in ast.walk(parts[0]) if isinstance(node, kinds) and node.name in functions]
            assert len(parts) == len(functions), name
        texts = (node.value for part in parts for node in ast.walk(part) if isinstance(node, ast.Constant))
        found |= {text for text in texts if isinstance(text, str) and text in CODES}
    return found


def test_answers_to_an_open_are_the_codes() -> None:
    """Each code with which the relay answers an OPEN has a row in section 6."""
    section = PAGE.partition("## 6. ")[2].partition("## 7. ")[0]
    told = set(re.findall(r"(?m)^\| `(\w+)` \|", section))
    over = {"closed", "cancelled"}  # the ends of streams that were open, and of OPENs that the client gave up
    # The switch itself answers an unknown kind, and the end of a host's right. The store's failures have one code.
    elsewhere = {"bad_request", "host_refused", "storage_unavailable"}
    assert _codes_of(_OF_OPENS) - over == told - elsewhere
    assert elsewhere <= told <= CODES.keys()


def test_answers_to_an_offer_are_the_codes() -> None:
    """Section 5 names each code with which the relay answers an OFFER."""
    told = set(re.findall(r"`(\w+)`", PAGE.partition("ends the offer, with a code (")[2].partition(")")[0]))
    assert _codes_of(_OF_OFFERS) == told - {"storage_unavailable"}


def states_table() -> str:
    """The page's table of states, generated from the code's."""
    rows = [(state, by, after) for (state, by), after in TABLE.items() if after is not State.RESET]
    return "\n".join(f"| {state.value} | {by.value} | {after.value} |" for state, by, after in rows)


def test_the_states_are_drawn_from_the_table() -> None:
    """The transitions on the page are those of the code."""
    assert states_table() in PAGE
