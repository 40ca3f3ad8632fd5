"""Figures about the structure of the three packages: python -m tests.packaging.structure

A folder is a node. It has an arrow to each folder of its package that one of its modules imports, anywhere in the
file. ``LAYERS`` is the order of the folders, and an arrow to a higher folder is an upward arrow. A folder may import
its parent, and a parent its child.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = {
    "kdispatch": ROOT / "agent" / "kdispatch",
    "kdispatch_relay": ROOT / "relay" / "kdispatch_relay",
    "kdispatch_protocol": ROOT / "shared" / "kdispatch_protocol",
}
#: Each package's folders from the lowest to the highest; "" is the package itself.
LAYERS: Final = {
    "kdispatch": ("", "machine", "network", "rest", "local", "doctor", "cli"),
    "kdispatch_relay": (
        "",
        "store/migrations/versions",
        "store/migrations",
        "store",
        "switch",
        "door",
        "api",
        "gate",
        "operator",
    ),
    "kdispatch_protocol": ("", "process", "wire", "session", "session/aio", "endpoint", "endpoint/aio"),
}


@dataclass(frozen=True)
class Structure:
    """One package: the arrows between its folders, and the imports behind each arrow."""

    package: str
    arrows: dict[tuple[str, str], list[str]]

    @property
    def folders(self) -> set[str]:
        """All folders of the package."""
        return {folder_of(self.package, path) for path in PACKAGES[self.package].rglob("*.py")}

    @property
    def between_siblings(self) -> set[tuple[str, str]]:
        """Arrows except those between a folder and its parent or ancestor."""
        return {(one, other) for one, other in self.arrows if not _holds(one, other) and not _holds(other, one)}

    @property
    def upward(self) -> set[tuple[str, str]]:
        """Arrows to a higher folder."""
        place = LAYERS[self.package].index
        return {(one, other) for one, other in self.between_siblings if place(one) < place(other)}

    @property
    def circles(self) -> set[frozenset[str]]:
        """Pairs of folders that reach each other."""
        reach = {folder: self._reached(folder) for folder in self.folders}
        return {
            frozenset((one, other))
            for one in reach
            for other in reach[one]
            if one != other and one in reach[other]
        }  # fmt: skip

    def _reached(self, folder: str) -> set[str]:
        seen: set[str] = set()
        new = {folder}
        while new:
            seen |= new
            new = {other for one, other in self.between_siblings if one in new} - seen
        return seen


def structure(package: str) -> Structure:
    """Read a package's files and return its structure."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for path in sorted(PACKAGES[package].rglob("*.py")):
        one = folder_of(package, path)
        for module in modules_of(path):
            if module.split(".")[0] != package:
                continue
            other = folder_of(package, _file(module))
            if other != one:
                arrows.setdefault((one, other), []).append(f"{path.name}: {module}")
    return Structure(package, arrows)


def modules_of(path: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            for name in node.names:
                whole = f"{module}.{name.name}"
                yield whole if module.split(".")[0] in PACKAGES and _is_module(whole) else module


def folder_of(package: str, path: Path) -> str:
    """The folder of a file, relative to its package."""
    return "/".join(path.parent.relative_to(PACKAGES[package]).parts)


def _file(module: str) -> Path:
    package, *rest = module.split(".")
    path = PACKAGES[package].joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return _file(name).exists()


def _holds(folder: str, other: str) -> bool:
    return folder == "" or other.startswith(f"{folder}/")


def main() -> None:
    """Print the figures."""
    for package in PACKAGES:
        found = structure(package)
        files = len(list(PACKAGES[package].rglob("*.py")))
        print(f"{package}: {files} files in {len(found.folders)} folders")
        print(f"  arrows between folders: {len(found.arrows)}, without parent and child: {len(found.between_siblings)}")
        print(f"  upward: {len(found.upward)}, circles: {len(found.circles)}")
        for pair in sorted(found.upward):
            print(f"    upward: {' -> '.join(pair)}: {', '.join(found.arrows[pair])}")
        for circle in found.circles:
            print(f"    circle: {', '.join(sorted(circle))}")


if __name__ == "__main__":
    main()
