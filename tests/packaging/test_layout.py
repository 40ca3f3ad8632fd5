from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.packaging.structure import LAYERS, PACKAGES, structure

#: The other packages that each package may import.
ALLOWED: Final[dict[str, set[str]]] = {
    "kdispatch": {"kdispatch_protocol"},
    "kdispatch_relay": {"kdispatch_protocol"},
    "kdispatch_protocol": set(),
}
#: A core does no I/O, reads no clock and uses no randomness.
NOT_IN_A_CORE: Final = {"asyncio", "socket", "ssl", "time", "datetime", "random", "secrets", "threading", "aiohttp"}
SWITCH: Final = PACKAGES["kdispatch_relay"] / "switch"
CORE: Final = [
    *(path for path in PACKAGES["kdispatch_protocol"].rglob("*.py") if not {"aio", "process"} & {*path.parts}),
    *SWITCH.glob("*.py"),
]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the top-level names of all imports in a file, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield (node.module or "").split(".")[0]


def test_source_roots() -> None:
    """Each of the three source roots contains exactly one package, with its ``py.typed``."""
    for package, folder in PACKAGES.items():
        visible = {path.name for path in folder.parent.iterdir() if path.name[0] not in "._"}
        assert visible == {package}
        assert (folder / "py.typed").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_go_one_way(package: str) -> None:
    """Agent and relay import the protocol; the protocol imports neither, and they never import each other."""
    used = {name for path in PACKAGES[package].rglob("*.py") for name in imports_of(path)}
    others = used & (PACKAGES.keys() - {package})
    assert others <= ALLOWED[package]
    assert "dataclasses" in used  # proves that the search works


def test_core_does_no_input_or_output() -> None:
    """No module of a core imports anything with I/O, a clock or randomness."""
    assert len(CORE) > 15
    found = {(path.name, name) for path in CORE for name in imports_of(path)}
    assert {pair for pair in found if pair[1] in NOT_IN_A_CORE} == set()


def test_files_are_small() -> None:
    """No file of the packages has more than 400 lines."""
    long = [path.name for folder in PACKAGES.values() for path in folder.rglob("*.py") if lines_of(path) > 400]
    assert long == []


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_are_imported_from_above(package: str) -> None:
    """No folder imports a higher one, and no two folders import each other in a circle."""
    found = structure(package)
    assert found.folders == set(LAYERS[package])
    assert len(found.between_siblings) > 3  # proves that the search works
    assert (found.upward, found.circles) == (set(), set())


_IMPORTED = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for part in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if not part.ispkg:
            importlib.import_module(part.name)
print(*{name.partition(".")[0] for name in sys.modules}, *(n for n in sys.modules if n.startswith("kdispatch")))
"""


@pytest.mark.parametrize(
    ("packages", "never"),
    [
        (["kdispatch_relay.switch"], {"asyncio", "aiohttp", "socket", "sqlalchemy", "kdispatch_protocol.endpoint"}),
        (
            ["kdispatch_protocol.wire", "kdispatch_protocol.session", "kdispatch_protocol.endpoint"],
            {"asyncio", "aiohttp", "ssl"},
        ),
        (["kdispatch_relay", "kdispatch_relay.gate"], {"kdispatch", "kdispatch_protocol.endpoint"}),
    ],
)
def test_cores_bring_nothing_along(packages: list[str], never: set[str]) -> None:
    """Importing a core or the relay does not load modules that it must not need, not even indirectly."""
    done = subprocess.run([sys.executable, "-c", _IMPORTED, *packages], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert set(packages) <= found
    assert found & never == set()


def lines_of(path: Path) -> int:
    return path.read_text().count("\n")
