"""How the commands of agent and relay print an error for people and for programs, and escape control characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from kdispatch_protocol.tokens import redacted

__all__ = ["SCHEMA", "JsonList", "error_json", "error_lines", "escaped"]

SCHEMA: Final = 1  #: version of everything printed with --json; rises when a field changes its meaning or disappears

#: Characters that reorder or hide the text beside them, or that end a line in some programs.
_UNSEEN: Final = (*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x206A), 0xFEFF)
#: These, C0, DEL and C1 become backslash escapes, as a terminal may obey any of them.
_ESCAPES: Final = {
    **{number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0))},
    **{number: f"\\u{number:04x}" for number in _UNSEEN},
}
_IN_BLOCKS: Final = {number: escape for number, escape in _ESCAPES.items() if chr(number) not in "\n\t"}


def escaped(text: str, *, block: bool = False) -> str:
    """Return ``text`` on one line without control characters; a ``block`` keeps its line feeds and tabs."""
    return text.translate(_IN_BLOCKS if block else _ESCAPES)


def error_lines(text: str, *, code: str | None, hop: str, hint: str) -> tuple[str, str, str]:
    """What failed, at which hop, and what to try. Redacted, because the text may repeat a mistyped token."""
    first = f"kdispatch: {text} [{code}]" if code else f"kdispatch: {text}"
    what, where, attempt = (redacted(escaped(line)) for line in (first, f"  where: {hop}", f"  try:   {hint}"))
    return what, where, attempt


def error_json(text: str, *, code: str | None, hop: str, hint: str) -> str:
    """The same facts as one JSON object."""
    what = {"code": code, "text": redacted(text), "hop": hop, "hint": redacted(hint)}
    return json.dumps({"schema": SCHEMA, "error": what})


class JsonList:
    """Write one JSON object in pieces; its last member ``key`` is a list. Call :meth:`add` for items, then :meth:`end`.

    Nothing is written before the first call. ``default`` is the argument of :func:`json.dumps`.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        key: str,
        fields: Mapping[str, Any] | None = None,
        default: Callable[[Any], Any] | None = None,
    ) -> None:
        self._write = write
        self._default = default
        before = json.dumps({"schema": SCHEMA, **(fields or {})}, default=default)
        self._before = f"{before[:-1]}, {json.dumps(key)}: ["

    def add(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Write these objects of the list."""
        for item in items:
            self._write(self._before + json.dumps(item, default=self._default))
            self._before = ", "

    def end(self) -> None:
        """Write the end of the object."""
        self._write(f"{self._before if self._before != ', ' else ''}]}}\n")
