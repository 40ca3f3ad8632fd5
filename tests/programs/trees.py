"""Makes a folder that is hard to copy, and checks whether two folders are equal in everything."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

from tests.net.harness import Network
from tests.programs.tunnel import KB, random_file, succeeds

__all__ = ["make_tree", "same_trees"]


def make_tree(folder: Path, size: int) -> None:
    """Create files of many sizes, unusual names, symbolic links, an empty directory, mode bits and times."""
    for name in ("plain", "a name with blanks", "ünïcode", "deep/er/down", "empty"):
        (folder / name).mkdir(parents=True)
    for number, length in enumerate([0, 1, 2, 1023, 1024, 65_535, 65_536, 65_537, 300 * KB]):
        random_file(folder / "plain", length, f"file-{number}")
    random_file(folder / "a name with blanks", 5 * KB, " begins and ends with one ")
    random_file(folder / "deep/er/down", 7 * KB, "-begins-with-a-dash 'and' \"quotes\" $HOME *")
    random_file(folder / "ünïcode", 9 * KB, "größe")
    for number in range(200):
        random_file(folder / "deep", random.Random(number).randrange(3 * KB), f"small-{number}")
    random_file(folder, size, "large")
    program = folder / "plain" / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o750)
    (folder / "plain" / "file-1").chmod(0o400)
    os.utime(folder / "plain" / "file-2", (1_000_000_000, 1_000_000_000))
    (folder / "link").symlink_to("plain/file-3")
    (folder / "link to a directory").symlink_to("deep")
    (folder / "link to nothing").symlink_to("nowhere/at all")


def _facts(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and link target of each entry below; ``diff`` compares only contents."""
    facts = {}
    for path in [folder, *folder.rglob("*")]:
        of = path.lstat()
        target = str(path.readlink()) if stat.S_ISLNK(of.st_mode) else ""
        facts[str(path.relative_to(folder))] = (of.st_mode, int(of.st_mtime), target)
    return facts


async def same_trees(network: Network, one: Path, other: Path) -> None:
    """Fail unless the two folders are equal, by ``diff`` and in mode, time and link target."""
    await succeeds(network.program("diff", "diff", "-r", "--no-dereference", str(one), str(other)))
    assert _facts(one) == _facts(other)
