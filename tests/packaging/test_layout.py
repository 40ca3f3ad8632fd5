from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = {
    "kdispatch": ROOT / "agent" / "kdispatch",
    "kdispatch_relay": ROOT / "relay" / "kdispatch_relay",
    "kdispatch_protocol": ROOT / "shared" / "kdispatch_protocol",
}
#: What each package may import of the others.
ALLOWED: Final[dict[str, set[str]]] = {
    "kdispatch": {"kdispatch_protocol"},
    "kdispatch_relay": {"kdispatch_protocol"},
    "kdispatch_protocol": set(),
}
#: A core does no I/O, reads no clock and makes no choices.
NOT_IN_A_CORE: Final = {"asyncio", "socket", "ssl", "time", "datetime", "random", "secrets", "threading", "aiohttp"}
SWITCH: Final = PACKAGES["kdispatch_relay"] / "switch"
CORE: Final = [
    *(path for path in PACKAGES["kdispatch_protocol"].rglob("*.py") if not {"aio", "process"} & {*path.parts}),
    *SWITCH.glob("*.py"),
]


def imports_of(path: Path) -> Iterator[str]:
    """The top-level names of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield (node.module or "").split(".")[0]


def test_source_roots() -> None:
    """Each of the three source roots holds one package, with its types for others, and nothing else."""
    for package, folder in PACKAGES.items():
        visible = {path.name for path in folder.parent.iterdir() if path.name[0] not in "._"}
        assert visible == {package}
        assert (folder / "py.typed").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_go_one_way(package: str) -> None:
    """Agent and relay build on the protocol; the protocol on neither, and they never on each other."""
    used = {name for path in PACKAGES[package].rglob("*.py") for name in imports_of(path)}
    others = used & (PACKAGES.keys() - {package})
    assert others <= ALLOWED[package]
    assert "dataclasses" in used  # the search finds what is there


def test_core_does_no_input_or_output() -> None:
    """No module of a core imports what reaches outside of it."""
    assert len(CORE) > 15
    found = {(path.name, name) for path in CORE for name in imports_of(path)}
    assert {pair for pair in found if pair[1] in NOT_IN_A_CORE} == set()


def test_files_are_small() -> None:
    """A file of more than 400 lines is two ideas."""
    long = [path.name for folder in PACKAGES.values() for path in folder.rglob("*.py") if lines_of(path) > 400]
    assert long == []


def lines_of(path: Path) -> int:
    return path.read_text().count("\n")
