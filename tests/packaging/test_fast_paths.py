"""Fast paths: each stands beside its general path, is named like it, and names the test that compares both."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_FOLDERS: Final = ("shared/kdispatch_protocol", "relay/kdispatch_relay", "agent/kdispatch")


def _pairs() -> list[tuple[str, str, str, bool]]:
    """Of each fast path its name with class, its file, its docstring, and whether the general path is in its class."""
    found = []
    for path in (path for folder in _FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        for cls in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)):
            if any(ast.unparse(base) == "Protocol" for base in cls.bases):
                continue  # an interface has no path
            methods = {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}
            for name in (name for name in methods if name.endswith("_fast")):
                said = ast.get_docstring(methods[name]) or ""
                general = name.removesuffix("_fast") in methods
                found.append((f"{cls.name}.{name}", path.relative_to(ROOT).as_posix(), said, general))
    return found


def test_each_fast_path_stands_beside_its_general_path() -> None:
    """Each method ``x_fast`` has a method ``x`` in its class."""
    assert len(_pairs()) >= 8
    assert [name for name, _, _, general in _pairs() if not general] == []


def test_each_fast_path_names_the_test_that_compares_both() -> None:
    """The docstring of each fast path names a test that exists, with its file."""
    for name, _, said, _ in _pairs():
        file, _, test = next(iter(re.findall(r"tests/[\w/]+\.py::\w+", said)), "").partition("::")
        assert file, f"{name} names no test"
        assert f"def {test}(" in (ROOT / file).read_text(), f"{name} names {file}::{test}"


def test_the_design_page_lists_each_fast_path() -> None:
    """The table of fast paths in docs/design.md has each of them, with its file."""
    page = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)\.(\w+)` \| `([\w/.]+)` \|", page)
    listed = {(f"{cls}.{name}", file) for cls, name, file in rows if name.endswith("_fast")}
    assert listed == {(name, file.split("/", 2)[2]) for name, file, _, _ in _pairs()}
