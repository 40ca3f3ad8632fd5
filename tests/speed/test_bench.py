"""Tests of the benchmarks' own parts: the delay line, the arithmetic of the table, and the page."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from bench import page
from bench.delay_line import delay_line
from bench.table import Line, table
from bench.works import jain
from tests.net.tcp import Tcp, echo, service


@pytest.mark.slow
async def test_delay_line_takes_its_time() -> None:
    """The delay line passes on all bytes and the end of each direction, no sooner than after its delay."""
    data = random.Random(6).randbytes(3_000_000)
    async with service(echo) as running, delay_line(running.port, 0.05) as line, await Tcp.connect(line.port) as tcp:
        began = time.monotonic()

        async def send() -> None:
            await tcp.send(data)
            tcp.finish()

        received, _ = await asyncio.gather(tcp.receive_all(), send())
        assert received == data
        assert time.monotonic() - began >= 0.1


@pytest.mark.slow
async def test_slow_leg_is_shared() -> None:
    """Two connections over a slow leg share its rate each way, and together get no more."""
    size, rate = 40_000, 400_000.0
    async with service(echo) as running, delay_line(running.port, 0.01, rate) as line:
        began = time.monotonic()

        async def one() -> None:
            async with await Tcp.connect(line.port) as tcp:
                await tcp.send(bytes(size))
                tcp.finish()
                assert await tcp.receive_all() == bytes(size)

        await asyncio.gather(one(), one())
        assert 2 * size / rate <= time.monotonic() - began <= 20 * size / rate


def test_jain() -> None:
    """Jain's index is 1 when all get the same, and 1/n when one of n gets everything."""
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1)
    assert jain([0.0, 5.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_ratio_is_of_each_round() -> None:
    """A line's ratio is the median of the rounds' ratios, so a round on a slow machine counts like any other."""
    line = Line("loopback", "bulk", "MB/s", 4000.0, [800.0, 100.0, 900.0], [400.0, 60.0, 270.0])
    assert line.ratio == pytest.approx(0.5)
    cells = line.cells()
    assert cells[:7] == ("bulk", "MB/s", "4,000", "800", "270", "0.50", "0.30-0.60")


def test_table_without_a_ruler() -> None:
    """Without a ruler, a line shows kdispatch alone, and a dash for each unknown figure."""
    shown = table([Line("start", "import", "ms", kdispatch=[12.34])], {"start": "starting"})
    head, _, site, row = (tuple(cell.strip() for cell in text.strip("|").split("|")) for text in shown.splitlines())
    assert head[:5] == ("work", "unit", "no proxies", "ruler", "kdispatch")
    assert site[0] == "**starting**"
    assert row == ("import", "ms", "-", "-", "12.3", "-", "-", "-", "-", "-")


def test_page_keeps_what_is_written_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New figures replace the text between their markers, and nothing else of the page."""
    copy = tmp_path / "performance.md"
    copy.write_text("above\n<!-- measured: table -->\nold\n<!-- end -->\nbelow\n")
    monkeypatch.setattr(page, "PAGE", copy)
    page.write("table", "new")
    assert copy.read_text() == "above\n<!-- measured: table -->\n\nnew\n\n<!-- end -->\nbelow\n"
    with pytest.raises(RuntimeError, match="0 places for profile"):
        page.write("profile", "new")
