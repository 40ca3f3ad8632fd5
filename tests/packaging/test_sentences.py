"""What people are told are sentences: each message and each hint has its end."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.errors import CODES, Code
from tests.demo.processes import KDISPATCH

ROOT: Final = Path(__file__).parents[2]
#: Doctor's lines are phrases.
SOURCES: Final = sorted(
    path
    for part in ("agent", "relay", "shared")
    for path in (ROOT / part).rglob("*.py")
    if not {"migrations", "doctor"} & set(path.parts)
)
#: Callables that tell people something, and which of their positional arguments is a sentence.
_TELLING: Final = {
    "KdispatchError": 1, "SetupError": 1, "StreamReset": 1, "RemoteProtocolError": 0, "LocalProtocolError": 0,
    "info": 0, "warning": 0, "error": 0, "warn": 0,
}  # fmt: skip
#: A log line that begins with a small letter is the name of what happened, with fields.
_LOGS: Final = frozenset({"info", "warning", "error"})
#: The end of a text that another constant, or what a library says, goes on.
_GOES_ON: Final = ("=", ": ", "%s", "%d")
_ENDS: Final = (".", "!", "?", "…", ":")


def _ends(node: ast.expr) -> Iterator[tuple[str, str]]:
    """The first and the last characters of every text that an expression may be."""
    match node:
        case ast.Constant(value=str(text)):
            yield text[:1], text[-40:]
        case ast.JoinedStr(values=[first, *_]) if isinstance(last := node.values[-1], ast.Constant):
            yield (str(first.value)[:1] if isinstance(first, ast.Constant) else ""), str(last.value)[-40:]
        case ast.IfExp(body=body, orelse=other):
            yield from _ends(body)
            yield from _ends(other)
        case _:
            return


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The ends of the texts in a file that are told, those of a local ``text`` as well."""
    for node in ast.walk(tree):
        found: list[tuple[str, str]] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = _TELLING.get(name)
            if place is not None and len(node.args) > place:
                found = [both for both in _ends(node.args[place]) if name not in _LOGS or not both[0].islower()]
        elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["text"]:
            found = list(_ends(node.value))
        if isinstance(node, ast.Call | ast.Assign):
            yield from ((node.lineno, end) for _, end in found if " " in end and not end.endswith(_GOES_ON))


def _is_open(text: str) -> bool:
    """Whether a sentence lacks its end; a quotation or a bracket may follow that."""
    return not text.rstrip("'\")").endswith(_ENDS) and not text.endswith((".", ")."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_are_sentences(path: Path) -> None:
    """Errors, warnings and what agents log end with a full stop."""
    assert [f"{path.name}:{line}: {end!r}" for line, end in _texts(ast.parse(path.read_text())) if _is_open(end)] == []


def test_the_look_finds_something() -> None:
    """The look sees messages in whatever form they are written, and lets whole ones and event names pass."""
    bad = """
raise KdispatchError("busy", "One thing")
raise SetupError("busy", f"{name} is not there", hint="x")
text = "This is one" if a else f"{b} is the other"
output.warn("others can see it")
log.info(f"The relay is back")
"""
    good = """
raise KdispatchError("busy", f"{a}: {b}.")
log.debug("stream ended")
_log.warning("can't open: %s", reason)
text = f"{where} is open."
text = "word"
"""
    assert sorted(line for line, end in _texts(ast.parse(bad)) if _is_open(end)) == [2, 3, 4, 4, 5, 6]
    assert [end for _, end in _texts(ast.parse(good)) if _is_open(end)] == []


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)
def test_codes_are_sentences(code: Code) -> None:
    """Each code's meaning and what to try end with a full stop."""
    assert code.meaning.endswith(".") and code.hint.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed", [["status", "--nothing"], ["nothing"], ["agent", "host", "ann/web"], ["agent", "stop"]]
)
def test_what_is_typed_wrong(typed: list[str]) -> None:
    """The words of the library that reads the command line end with a full stop, too."""
    ended = subprocess.run([KDISPATCH, *typed], capture_output=True, text=True, timeout=30, check=False)
    first = ended.stderr.splitlines()[0]
    assert ended.returncode == 2 and re.search(r"[.?!] \[bad_request\]$", first), first
