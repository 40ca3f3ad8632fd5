"""Check a built wheel: python -m tests.tools.check_wheel FILE."""

from __future__ import annotations

import configparser
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ("agent/kdispatch", "relay/kdispatch_relay", "shared/kdispatch_protocol")


def expected_files() -> set[str]:
    """The files of the three source roots, as a wheel names them."""
    return {
        path.relative_to(folder.parent).as_posix()
        for folder in (ROOT / source for source in SOURCES)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def problems(wheel: Path) -> list[str]:
    """Return what is wrong with the wheel, one sentence per problem."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        points = configparser.ConfigParser()
        points.read_string(archive.read(f"{info}/entry_points.txt").decode())
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    found = []
    code = {name for name in names if not name.startswith(f"{info}/")}
    found += [f"{name} is missing" for name in sorted(expected_files() - code)]
    found += [f"{name} does not belong there" for name in sorted(code - expected_files())]
    entries = {f"{section}: {key} = {value}" for section in points.sections() for key, value in points.items(section)}
    if entries != {
        "console_scripts: kdispatch = kdispatch.cli.main:run",
        "kdispatch.commands: relay = kdispatch_relay.cli:app",
        "kdispatch.parts: relay = kdispatch_relay.dev:relay_for_dev",
    }:
        found.append(f"its entry points are {sorted(entries)}")
    if f"{info}/licenses/LICENSE" not in names:
        found.append("the licence is missing")
    if missing := {"relay", "postgres", "fast", "keyring"} - set(metadata.get_all("Provides-Extra", [])):
        found.append(f"the extras {sorted(missing)} are missing")
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) or f"{Path(sys.argv[1]).name}: the three packages, the three entry points, nothing else")
    sys.exit(bool(wrong))
