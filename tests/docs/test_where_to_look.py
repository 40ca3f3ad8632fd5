"""The names in CONTRIBUTING.md's "Where to look" exist in the files that it names."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

from tests.net.loop_stack import running_stack
from tests.net.tcp import Tcp, echo, service

ROOT: Final = Path(__file__).parents[2]
_PARTS: Final = {
    "agent": "agent/kdispatch",
    "relay": "relay/kdispatch_relay",
    "shared": "shared/kdispatch_protocol",
    "tests": "tests",
}
_QUESTIONS: Final = 6


def _section() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return text.partition("## Where to look\n")[2].partition("\n## ")[0]


def _rows() -> list[tuple[str, str]]:
    """Each file with one name that the page says is in it."""
    rows = re.findall(r"(?m)^\| (\w+): `([\w/.]+)` \| (.+) \| [^|]+ \|$", _section())
    return [(f"{_PARTS[part]}/{file}", name) for part, file, names in rows for name in re.findall(r"`(.+?)`", names)]


def _way(column: int) -> list[str]:
    """The names in a column of the first question's table."""
    rows = [line.split(" | ") for line in _section().splitlines() if line.startswith("| ") and line.count(" | ") == 3]
    return [name for row in rows for name in re.findall(r"`(.+?)`", row[column])]


def _defined(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The functions, classes and constants of a module or a class."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


def _attributes(cls: ast.ClassDef) -> set[str]:
    """The attributes that a class's methods set."""
    return {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


def _is_there(file: str, name: str) -> bool:
    first, _, rest = name.partition(".")
    node = _defined(ast.parse((ROOT / file).read_text()).body).get(first)
    if not rest or node is None:
        return node is not None
    return isinstance(node, ast.ClassDef) and rest in _defined(node.body).keys() | _attributes(node)


@pytest.mark.parametrize(("file", "name"), sorted(set(_rows())))
def test_names_exist(file: str, name: str) -> None:
    """Each function, class and constant of the page is defined in the file beside it."""
    assert _is_there(file, name)


@pytest.mark.slow
async def test_a_byte_goes_this_way(tmp_path: Path) -> None:
    """A byte that comes alone passes the page's functions in their order, and bulk passes those of the other column."""
    fast, in_turn = _way(1), _way(2)
    called: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_qualname
        if event == "call" and name in {*fast, *in_turn}:
            called.append(name)

    async def sent(tcp: Tcp, data: bytes) -> None:
        called.clear()
        sys.setprofile(note)
        try:
            await asyncio.gather(tcp.send(data), tcp.receive_exactly(len(data)))
        finally:
            sys.setprofile(None)

    async with service(echo) as programs, running_stack(tmp_path) as stack:
        await stack.host(programs.port)
        _, port = await stack.client()
        async with await Tcp.connect(port) as tcp:
            await sent(tcp, b"the stream opens")
            for _ in range(20):  # nothing else is to be sent at that moment, as an ACK of the last one
                await asyncio.sleep(0.15)
                await sent(tcp, b"1")
                if called[: len(fast)] == fast:
                    break
            assert called[: len(fast)] == fast
            await sent(tcp, bytes(3_000_000))
            assert set(called) >= set(in_turn)


def test_every_question_has_an_answer() -> None:
    """The section has its questions, and each has a table with names."""
    answers = re.split(r"(?m)^\*\*.+?\?\*\*", _section())[1:]
    assert len(answers) == _QUESTIONS
    assert all(len(re.findall(r"(?m)^\| \w+: ", answer)) >= 4 for answer in answers)
    rows = re.findall(r"(?m)^\| \w+: .+", _section())
    assert all(re.match(r"\| \w+: `[\w/.]+` \| (`|- \| `)", row) for row in rows)


def test_a_wrong_name_is_found() -> None:
    """A name that is not in its file, or not in its class, does not count as there."""
    assert _is_there("shared/kdispatch_protocol/endpoint/table.py", "StreamTable.pass_on")
    assert not _is_there("shared/kdispatch_protocol/endpoint/table.py", "StreamTable.pass_by")
    assert not _is_there("shared/kdispatch_protocol/endpoint/table.py", "pass_on")
