"""Error output of commands."""

from __future__ import annotations

import json

from kdispatch_protocol.console import SCHEMA, error_json, error_lines, escaped
from kdispatch_protocol.tokens import format_token


def test_control_characters_are_shown_not_obeyed() -> None:
    """Escape sequences, C1 controls and line breaks in foreign text are shown escaped."""
    assert escaped("a\x1b[31mb\x9bc\nd\te\x7f") == r"a\x1b[31mb\x9bc\x0ad\x09e\x7f"
    assert escaped("a\x1bb\nc\td", block=True) == "a\\x1bb\nc\td"
    assert escaped("grün 東") == "grün 東"


def test_what_turns_or_hides_text_is_shown() -> None:
    """Direction marks, Unicode line ends and characters without width are shown escaped, also in blocks."""
    assert escaped("a\u202eb\u2028c\u200b\u2066\ufeff") == r"a\u202eb\u2028c\u200b\u2066\ufeff"
    assert escaped("\u2029", block=True) == r"\u2029"


def test_error_lines() -> None:
    """An error is three lines, whatever its parts contain; a usage error has no code."""
    lines = error_lines("It\nfailed.", code="bad_name", hop="the relay", hint="try\rthis")
    assert lines == (r"kdispatch: It\x0afailed. [bad_name]", "  where: the relay", r"  try:   try\x0dthis")
    assert error_lines("No.", code=None, hop="here", hint="yes")[0] == "kdispatch: No."


def test_error_json() -> None:
    """The JSON form is one object with the schema's number; JSON itself escapes control characters."""
    told = json.loads(error_json("a\nb", code=None, hop="here", hint="h"))
    assert told == {"schema": SCHEMA, "error": {"code": None, "text": "a\nb", "hop": "here", "hint": "h"}}


def test_errors_hold_no_token() -> None:
    """A token is never shown, wherever in an error it is."""
    token = format_token("adm", bytes(range(32)))
    shown = "".join(error_lines(f"bad {token}", code="unauthorized", hop=token, hint=token))
    shown += error_json(f"bad {token}", code="unauthorized", hop="here", hint=token)
    assert token not in shown
