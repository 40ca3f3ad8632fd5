from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edges.servers import Edge
from tests.first_minutes.watch import watch
from tests.net.conftest import network, own_relay, pytest_runtest_makereport, shared_relay

__all__ = ["edge_of", "network", "own_relay", "pytest_runtest_makereport", "shared_relay", "watch"]

EdgeOf = Callable[..., Edge]


@pytest.fixture
def edge_of(tmp_path: Path) -> Iterator[EdgeOf]:
    """Makes servers that end with the test, from a kind, the upstream port, and the options of :class:`Edge`."""
    made: list[Edge] = []
    outside: list[Path] = []

    def make(kind: type[Edge], upstream: int, **options: Any) -> Edge:
        if lacks := kind.lacks():
            pytest.skip(lacks)
        folder = tmp_path / f"{kind.name}-{len(made)}"
        if kind.user and os.geteuid() == 0:  # a test's own folder is closed to other users
            folder = Path(tempfile.mkdtemp(prefix=f"kdispatch-{kind.name}-"))
            shutil.chown(folder, kind.user, kind.user)
            outside.append(folder)
        made.append(kind(folder, upstream, **options))
        return made[-1]

    try:
        yield make
    finally:
        for edge in made:
            edge.stop()
        for folder in outside:
            shutil.rmtree(folder)
