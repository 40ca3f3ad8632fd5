"""Transfers through a server in front of the relay continue while the server is reloaded or killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from tests.edges.conftest import EdgeOf
from tests.edges.more_servers import MORE, Lighttpd, Nghttpx
from tests.edges.servers import EDGES, Edge, HaproxySuccessors
from tests.edges.site import Site, site
from tests.faults.transfer import Transfers, transfers
from tests.net.harness import KIB, MIB, Relay

pytestmark = pytest.mark.slow

_STREAMS: Final = 20
_PATIENCE: Final = 100.0  # seconds without a byte that count as a stall: below the grace of 120 s
_SETTLED: Final = 0.3  # seconds after a reload; a cut would show by then
#: Seconds until an old configuration cuts its tunnels, in the cases that test this cut.
_CUT_AFTER: Final = 1.0

#: These have no limit on how long tunnels stay with an old configuration.
_NEVER_CUT: Final = frozenset(MORE) - {Lighttpd, Nghttpx}

_Strike = Callable[[Site], Awaitable[None]]


async def _kept(site: Site) -> None:
    """Reload without any lost session: the tunnels stay with the old configuration."""
    before = site.lost
    await site.edge.reload()
    await asyncio.sleep(_SETTLED)
    assert site.lost == before, "a reload has cut sessions"


async def _cut(site: Site) -> None:
    """Reload with an old configuration that cuts its tunnels."""
    before = site.lost
    await site.edge.reload()
    await site.all_lost(before)
    await site.all_back()


async def _crashed(site: Site) -> None:
    """``kill -9`` the processes that carry tunnels, including those of an older configuration."""
    before = site.lost
    await site.edge.crash()
    await site.all_lost(before)
    await site.all_back()


@dataclass(frozen=True)
class _Case:
    """Bytes and bytes per second in each direction of a stream, and the strikes, one after the other."""

    kind: type[Edge]
    strikes: tuple[_Strike, ...]
    size: int
    rate: float
    cut_after: float | None = None


def _cases() -> list[ParameterSet]:
    size, rate = 8 * MIB, MIB // 2
    small = [(kind.name, _Case(kind, (_kept, _crashed), 240 * KIB, 120 * KIB)) for kind in EDGES]
    full = []
    for kind in (*EDGES, *MORE):
        full.append((f"{kind.name} reload", _Case(kind, (_kept,) * 5, size, rate)))
        full.append((f"{kind.name} kill -9", _Case(kind, (_crashed,) * 3, size, rate)))
        if kind not in _NEVER_CUT:
            full.append((f"{kind.name} reload that cuts", _Case(kind, (_cut,) * 3, size, rate, _CUT_AFTER)))
    full.append(("haproxy -sf", _Case(HaproxySuccessors, (_kept,) * 5, size, rate)))
    return [
        *(pytest.param(case, id=f"small {name}") for name, case in small),
        *(pytest.param(case, id=name, marks=pytest.mark.accept) for name, case in full),
    ]


async def _strike(case: _Case, site: Site, through: Transfers) -> list[str]:
    """Strike at equal distances, while every transfer runs: all start before the first and end after the last."""
    while not through.running or not all(exchange.begun for exchange in through.running.values()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    total, told = 2 * _STREAMS * case.size, []
    for number, strike in enumerate(case.strikes):
        await through.reached(int(total * (0.05 + 0.6 * number / len(case.strikes))))
        began, moved = time.monotonic(), through.moved
        await strike(site)
        told.append(f"at {moved / total:.0%} {strike.__name__.strip('_')}, {time.monotonic() - began:.1f} s")
    assert through.finished == 0, "transfers were over before the last strike"
    return told


@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", _cases())
async def test_transfers_outlive_the_server(case: _Case, shared_relay: Relay, edge_of: EdgeOf, tmp_path: Path) -> None:
    """No stream is lost and every byte arrives, whether a tunnel stays in an old process, is cut, or dies."""
    edge = edge_of(case.kind, shared_relay.address.port, cut_after=case.cut_after)
    async with (
        transfers(8, _PATIENCE) as through,
        site(edge, shared_relay, tmp_path / "agents", [through.port]) as here,
    ):
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                striking = group.create_task(_strike(case, here, through))
                await asyncio.wait(
                    [
                        group.create_task(through.exchange(here.ports[0], case.size, rate=case.rate))
                        for _ in range(_STREAMS)
                    ]
                )
        except BaseException as error:
            error.add_note(here.logs())
            raise
        assert through.moved == 2 * _STREAMS * case.size
        print(
            f"{through.moved / 1e6:.0f} MB over {_STREAMS} streams in {time.monotonic() - began:.1f} s, sessions lost "
            f"{here.lost}, longest pause {through.longest:.1f} s; " + "; ".join(striking.result())
        )
