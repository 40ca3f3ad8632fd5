"""The memory of full streams that are detached, and that none of it is left afterwards."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from tests.net.harness import MIB, Network, Process, Relay, counts_at_rest, eventually, sizes
from tests.net.loop_stack import Stack, running_stack
from tests.net.stuffed import Stuffed, stuffed
from tests.net.way import Way, way

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_SOON: Final = 5.0  # seconds


@dataclass(frozen=True)
class _Load:
    streams: int
    grace: float
    extra: float  # the tombstones' life beyond it
    budget: float = 1.0  # a fraction of the usual ones, so that few streams use them up too

    @property
    def limits(self) -> Limits:
        replay, credit = (int(self.budget * size) for size in (DEFAULT_LIMITS.replay, DEFAULT_LIMITS.credit))
        return Limits(grace=self.grace, tombstone_extra=self.extra, replay=replay, credit=credit)


_FULL: Final = _Load(500, 5, 60)


def _tombstones(stack: Stack) -> list[int]:
    return [len(driver.endpoint.table.tombstones) for driver in stack.drivers]


def _tell(when: str, stack: Stack) -> None:
    tables = [driver.endpoint.table for driver in stack.drivers]
    print(
        f"{when}: for replay, host and client {[table.replay_held / MIB for table in tables]} MiB,",
        f"promised {[table.budget.promised / MIB for table in tables]} MiB,",
        f"queued at the relay {stack.switch.budget.queued / MIB} MiB,",
        f"waiting there {len(stack.switch.attachments)}, tombstones {_tombstones(stack)}",
    )


@pytest.mark.parametrize("load", sizes(_Load(40, 0.6, 0.4, 1 / 16), _FULL))
async def test_tables_of_detached_streams(tmp_path: Path, load: _Load) -> None:
    """Full and detached streams stay within the budgets; after their time, nothing is left of them."""
    async with (
        stuffed() as programs,
        running_stack(tmp_path, load.limits) as stack,
        way(RelayUrl.parse(stack.url).port) as to_relay,
    ):
        await stack.host(programs.service.port)
        _, port = await stack.client(url=to_relay.url)
        before, tasks = stack.held(), len(asyncio.all_tasks())
        await programs.connect(port, load.streams)
        to_relay.hold_answers()  # so that nothing from the host or the client is acknowledged
        await programs.fill()
        print()
        _tell("full", stack)
        stack.check_budgets(load.streams)

        to_relay.cut()
        await eventually(lambda: len(stack.switch.attachments), load.streams, _SOON)
        _tell("detached", stack)
        stack.check_budgets(load.streams)
        assert (programs.resets, programs.service.open) == (0, load.streams)

        await eventually(lambda: _tombstones(stack), [load.streams, load.streams], load.grace + _SOON)
        ended = time.monotonic()
        _tell("after the grace", stack)
        assert stack.held() == before
        await eventually(lambda: len(stack.switch.attachments), 0, _SOON)
        to_relay.mend()
        await programs.are_reset()

        await eventually(lambda: _tombstones(stack), [0, 0], load.extra + _SOON)
        _tell(f"{time.monotonic() - ended:.1f} s later", stack)
        await eventually(lambda: len(stack.switch.by_process), 2, 20)
        await eventually(lambda: len(asyncio.all_tasks()), tasks)
        assert stack.held() == before


class _Memory:
    """What the relay, the host and the client hold beyond the start, in MiB."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._before = self._now()

    def _now(self) -> list[float]:
        return [process.usage.anonymous / MIB for process in self._processes]

    def grown(self, when: str) -> list[float]:
        grown = [now - before for now, before in zip(self._now(), self._before, strict=True)]
        print(f"{when}: relay, host and client hold {[round(one, 1) for one in grown]} MiB more")
        return grown


async def _fill_and_cut(programs: Stuffed, port: int, to_relay: Way, memory: _Memory) -> list[float]:
    """Fill the streams and cut them off; returns what the processes hold then. At the end the streams are gone."""
    await programs.connect(port, _FULL.streams)
    to_relay.hold_answers()
    await programs.fill()
    memory.grown("full")
    to_relay.cut()
    await asyncio.sleep(_FULL.grace / 2)
    assert (programs.resets, programs.service.open) == (0, _FULL.streams)
    held = memory.grown("detached")
    await programs.are_reset()
    memory.grown("after the grace")
    return held


@pytest.mark.accept
async def test_memory_of_detached_streams(network: Network, own_relay: Relay) -> None:
    """Processes stay within the budgets, too, and the memory is available again for the next streams."""
    name = await network.service()
    grace = f"--grace={_FULL.grace}"
    async with stuffed() as programs, way(own_relay.address.port) as to_relay:
        host = await network.host(name, programs.service.port, grace)
        client, port = await network.connect(name, grace, "--relay", to_relay.url)
        agents = [host, client]
        descriptors = [count for count, _ in await counts_at_rest(agents)]
        print()
        memory = _Memory([own_relay.running, *agents])
        first = await _fill_and_cut(programs, port, to_relay, memory)
        # The overhead is at most a quarter, and half at the relay, which keeps each frame with its message.
        assert max(first[1:]) <= 1.25 * DEFAULT_LIMITS.replay / MIB
        assert first[0] <= 1.5 * DEFAULT_LIMITS.credit / MIB

        # Python's allocator gives little back to the system, so its reuse shows that it is free.
        to_relay.mend()
        await client.says("The session with the relay is back", 30)
        await eventually(lambda: [agent.usage.descriptors for agent in agents], descriptors)
        again = await _fill_and_cut(programs, port, to_relay, memory)
        more = [two - one for one, two in zip(first, again, strict=True)]
        assert max(more) <= 0.1 * DEFAULT_LIMITS.replay / MIB
