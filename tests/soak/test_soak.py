"""No resource grows over a long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.run import QUICK, soak

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]


async def test_nothing_grows(tmp_path: Path) -> None:
    """After some seconds of all activities, memory is within its limit, with no descriptor, thread or stream left."""
    report = await soak(tmp_path, QUICK, 2.0, times=10)
    print(*report.lines(), sep="\n")
    assert not report.failures
    assert report.sessions >= 2
