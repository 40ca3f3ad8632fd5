"""Tunnels survive boxes that cut idle or old connections: agents learn the limit, and then no session is cut.

In the small form agents run in this process with scaled times; in the full form they are processes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch.client import Client, LocalListener
from kdispatch.host import Host, LocalPort
from kdispatch.local.front import one_service
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.limits import DEFAULT_LIMITS, KIB, Limits
from tests.aio.twin import running_gate
from tests.net.harness import Network, Relay, sizes
from tests.net.tcp import Tcp, digest, service
from tests.networks.middlebox import Middlebox, Rules, middlebox

pytestmark = pytest.mark.slow

_TIMES: Final = ("ping", "ping_least", "dead_agent", "rotate_least")
_LOST: Final = "Lost the session with the relay"
_LEARNT: Final = "The path to the relay cuts"
_BLOCK: Final = bytes(range(256)) * 16


@dataclass(frozen=True)
class _Case:
    """A box, the limit that agents learn there, and whether a stream is busy."""

    rules: Rules
    learns: str = ""
    busy: bool = False


#: Seconds of the full form.
_CASES: Final = {
    "idle": _Case(Rules(idle=20)),
    "idle up": _Case(Rules(idle=20, counts="up"), busy=True),
    "idle down": _Case(Rules(idle=20, counts="down"), busy=True),
    "idle sooner": _Case(Rules(idle=10), learns="silent for"),
    "idle, silently": _Case(Rules(idle=12, silently=True), learns="silent for"),
    "old": _Case(Rules(life=30), learns="s old", busy=True),
}


@dataclass(frozen=True)
class _Size:
    """``scale``: length of one second of the full form. ``slack``: factor on the limits that pings satisfy anyway."""

    scale: float
    slack: float
    watched: float  # seconds without a cut, after the limits are learnt


class _Log:
    """Collects the log of an agent in this process."""

    def __init__(self) -> None:
        self.text = ""

    def isEnabledFor(self, level: int) -> bool:
        return False

    def info(self, event: str, **_: Any) -> None:
        self.text += f"{event}\n"

    warning = debug = info


@dataclass(frozen=True)
class _Pair:
    """A host and a client, each behind its own box. ``port`` is the client's; ``logs`` return their logs so far."""

    port: int
    logs: tuple[Callable[[], str], Callable[[], str]]


@asynccontextmanager
async def _here(boxes: list[Middlebox], name: str, port: int, limits: Limits) -> AsyncIterator[_Pair]:
    logs = _Log(), _Log()
    dialers = [Dialer(RelayUrl.parse(box.url)) for box in boxes]
    local = LocalPort("127.0.0.1", port)
    host = local.host = Host(dialers[0], name, "t", local, log=logs[0], limits=limits)
    client = Client(dialers[1], log=logs[1], limits=limits)
    listener = LocalListener(client, one_service(name))
    await host.start(5)
    try:
        await client.uplink.start(5)
        await listener.listen("127.0.0.1", 0)
        listener.serve()
        yield _Pair(listener.port, (lambda: logs[0].text, lambda: logs[1].text))
    finally:
        listener.close()
        await client.stop()
        await host.stop()


@asynccontextmanager
async def _processes(boxes: list[Middlebox], folder: Path, token: str, port: int) -> AsyncIterator[_Pair]:
    async with AsyncExitStack() as ending:
        networks = []
        for number, box in enumerate(boxes):
            (folder / str(number)).mkdir(parents=True)
            networks.append(Network(folder / str(number), box.url, token))
            ending.callback(networks[-1].stop)
        name = await networks[0].service()
        host = await networks[0].host(name, port)
        client, entry = await networks[1].connect(name)
        yield _Pair(entry, (lambda: host.err, lambda: client.err))


async def _idle(pair: _Pair, done: asyncio.Event) -> None:
    """Hold a stream that carries nothing between its first and its last bytes."""
    async with await Tcp.connect(pair.port) as tcp:
        await tcp.send(b"first")
        await done.wait()
        await tcp.send(b"last")
        tcp.finish()
        assert await tcp.receive_all() == hashlib.sha256(b"firstlast").digest()


async def _busy(pair: _Pair, done: asyncio.Event) -> None:
    """Hold a stream that carries data all the time, in one direction."""
    hashed, size = hashlib.sha256(), 0
    async with await Tcp.connect(pair.port) as tcp:
        while not done.is_set():
            block = size.to_bytes(8, "big") + _BLOCK
            await tcp.send(block)
            hashed.update(block)
            size += len(block)
            await asyncio.sleep(0.05)
        tcp.finish()
        assert await tcp.receive_all() == hashed.digest()
    assert size > 64 * KIB


async def _watch(name: str, pair: _Pair, size: _Size) -> None:
    """Check that streams survive, that agents learn each limit once, and that no session is cut after that."""
    case, done = _CASES[name], asyncio.Event()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        streams = [group.create_task(_idle(pair, done))]
        streams += [group.create_task(_busy(pair, done))] if case.busy else []
        async with asyncio.timeout(200 * size.scale + 20):
            while not all(case.learns in log() for log in pair.logs):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
        learnt, before = loop.time() - began, [log().count(_LOST) for log in pair.logs]
        await asyncio.sleep(size.watched * size.scale)
        after = [log().count(_LOST) for log in pair.logs]
        assert not any(stream.done() for stream in streams)
        done.set()
    print(f"{name}: {before} cuts of host and client; {learnt:.1f} s until all was known")
    assert after == before
    assert all(log().count(_LEARNT) == bool(case.learns) for log in pair.logs)


def _limits(scale: float) -> Limits:
    """Scale the agent's times that matter for boxes."""
    return dataclasses.replace(DEFAULT_LIMITS, **{name: getattr(DEFAULT_LIMITS, name) * scale for name in _TIMES})


def _rules(case: _Case, size: _Size) -> Rules:
    factor = size.scale * (1.0 if case.learns else size.slack)
    return dataclasses.replace(case.rules, idle=case.rules.idle * factor, life=case.rules.life * factor)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("size", sizes(_Size(1 / 15, 1.5, 45), _Size(1.0, 1.0, 65)))
async def test_tunnels_live_on(tmp_path: Path, size: _Size) -> None:
    """Streams survive boxes that cut after 10, 12 or 20 s idle or at an age of 30 s, and cuts soon stop."""
    async with AsyncExitStack() as ending, asyncio.TaskGroup() as group:
        local = await ending.enter_async_context(service(digest))
        token, limits = "", _limits(size.scale)
        if size.scale < 1:
            to = (await ending.enter_async_context(running_gate(limits))).port
        else:
            relay = Relay(tmp_path)
            ending.callback(relay.stop)
            await relay.start()
            to, token = relay.address.port, relay.token
        work = []
        for number, (name, case) in enumerate(_CASES.items()):
            rules = _rules(case, size)
            boxes = [await ending.enter_async_context(middlebox(to, rules)) for _ in range(2)]
            if size.scale < 1:
                agents = _here(boxes, f"ann/s{number}", local.port, limits)
            else:
                agents = _processes(boxes, tmp_path / str(number), token, local.port)
            pair = await ending.enter_async_context(agents)
            work.append(group.create_task(_watch(name, pair, size)))
        await asyncio.gather(*work)
