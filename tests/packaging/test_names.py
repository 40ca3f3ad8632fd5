"""No class has the name of another one."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.packaging.structure import PACKAGES, ROOT


def test_class_names_are_unique() -> None:
    """No two classes of the three packages have one name: a reader who meets it knows which is meant."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(str(path.relative_to(ROOT)))
    assert len(found) > 300  # the search finds what is there
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}
