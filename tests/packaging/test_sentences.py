"""Texts for people are sentences: each message and each hint has a capital and an end."""

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
#: Without doctor, whose lines are phrases.
SOURCES: Final = sorted(
    path
    for part in ("agent", "relay", "shared")
    for path in (ROOT / part).rglob("*.py")
    if not {"migrations", "doctor"} & set(path.parts)
)
#: Callables with a text for people, and the position of that argument.
_TELLING: Final = {
    "KdispatchError": 1, "SetupError": 1, "StreamReset": 1, "RemoteProtocolError": 0, "LocalProtocolError": 0,
    "info": 0, "warning": 0, "error": 0, "exception": 0, "log": 1, "warn": 0,
}  # fmt: skip
#: Texts after "kdispatch: warning: " start with a small letter.
_GO_ON: Final = frozenset({"warn"})
#: Names that always start with a small letter.
_NAMES: Final = ("kdispatch ", "aiohttp ", "config_version ")
#: Ends of texts that another constant, or a library's message, continues.
_GOES_ON: Final = ("=", ": ", "%s", "%d")
_ENDS: Final = (".", "!", "?", "…", ":")


def _ends(node: ast.expr) -> Iterator[tuple[str, str]]:
    """Yield start and end of each possible text of an expression; the start is empty if it is a value."""
    match node:
        case ast.Constant(value=str(text)):
            yield text[:40], text[-40:]
        case ast.JoinedStr(values=[first, *_]) if isinstance(last := node.values[-1], ast.Constant):
            yield (str(first.value)[:40] if isinstance(first, ast.Constant) else ""), str(last.value)[-40:]
        case ast.IfExp(body=body, orelse=other):
            yield from _ends(body)
            yield from _ends(other)
        case _:
            return


def _texts(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield start and end of each text for people in a file, including those of a local ``text``."""
    for node in ast.walk(tree):
        found: list[tuple[str, str]] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = _TELLING.get(name)
            if place is not None and len(node.args) > place:
                found = [("" if name in _GO_ON else start, end) for start, end in _ends(node.args[place])]
        elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["text"]:
            found = [("", end) for _, end in _ends(node.value)]
        if isinstance(node, ast.Call | ast.Assign):
            yield from ((node.lineno, start, end) for start, end in found if " " in end)


def _is_open(start: str, end: str) -> bool:
    """Whether a sentence lacks its capital or its end; a quotation mark or a bracket may follow the end."""
    if start[:1].islower() and not start.startswith(_NAMES):
        return True
    return not end.endswith(_GOES_ON) and not end.rstrip("'\")").endswith(_ENDS) and not end.endswith((".", ")."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_are_sentences(path: Path) -> None:
    """Errors, warnings and log lines begin with a capital and end with a full stop."""
    found = [f"{path.name}:{line}: {start!r} … {end!r}" for line, start, end in _open(path.read_text())]
    assert found == []


def _open(source: str) -> list[tuple[int, str, str]]:
    return [told for told in _texts(ast.parse(source)) if _is_open(*told[1:])]


def test_the_look_finds_something() -> None:
    """The check finds wrong messages in every form, and accepts complete ones and event names."""
    bad = """
raise KdispatchError("busy", "One thing")
raise SetupError("busy", f"{name} is not there", hint="x")
text = "This is one" if a else f"{b} is the other"
output.warn("others can see it")
log.info(f"The relay is back")
_log.exception("a look-up failed.")
_log.log(logging.INFO, "this process may open %d files.", 7)
"""
    good = """
raise KdispatchError("busy", f"{a}: {b}.")
log.debug("stream ended")
_log.warning("It can't open: %s", reason)
output.warn("others can see it.")
_log.info("kdispatch relay %s", what)
text = f"{where} is open."
text = "word"
"""
    assert sorted(line for line, *_ in _open(bad)) == [2, 3, 4, 4, 5, 6, 7, 8]
    assert _open(good) == []


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)
def test_codes_are_sentences(code: Code) -> None:
    """Each code's meaning and hint end with a full stop."""
    assert code.meaning.endswith(".") and code.hint.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed", [["status", "--nothing"], ["nothing"], ["agent", "host", "ann/web"], ["agent", "stop"]]
)
def test_what_is_typed_wrong(typed: list[str]) -> None:
    """Messages of the command line library end with a full stop, too."""
    ended = subprocess.run([KDISPATCH, *typed], capture_output=True, text=True, timeout=30, check=False)
    first = ended.stderr.splitlines()[0]
    assert ended.returncode == 2 and re.search(r"[.?!] \[bad_request\]$", first), first
