"""The table of what ``make test`` leaves out names tests that there are, and says why."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

from tests.tiers import IN_TEST_ALL, is_in_test_all

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("begin", IN_TEST_ALL)
def test_each_is_a_test(begin: str) -> None:
    """Each entry is a folder with tests, a file of tests, or a function in one, and has a reason."""
    place, _, name = begin.partition("::")
    path = ROOT / place
    assert path.exists()
    assert len(IN_TEST_ALL[begin]) > 10
    if path.is_dir():
        assert begin.endswith("/") and list(path.glob("test_*.py"))
        return
    functions = {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    assert not name or name.partition("[")[0] in functions


def test_names() -> None:
    """A test is left out if its name begins with an entry, and no other one is."""
    begin = next(iter(IN_TEST_ALL))
    assert is_in_test_all(f"{begin}x")
    assert not is_in_test_all("tests/packaging/test_tiers.py::test_names")
