"""Each server of docs/edges.md in front of a relay: a person's first use, across a reload and a crash."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.edges.conftest import EdgeOf
from tests.edges.more_servers import MORE
from tests.edges.servers import EDGES, Edge
from tests.edges.site import Site, site
from tests.first_minutes.person import Person
from tests.first_minutes.watch import Watch
from tests.net.harness import MIB, Relay
from tests.net.tcp import Tcp, service

pytestmark = pytest.mark.slow

_SIZE: Final = 10 * MIB
_KINDS: Final = (*MORE, *(pytest.param(kind, marks=pytest.mark.accept) for kind in EDGES))


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A relay that trusts the server in front of it, and logs at its most verbose level."""
    relay = Relay(tmp_path_factory.mktemp("relay"))
    try:
        asyncio.run(relay.start("--verbose", "--trusted-proxy", "127.0.0.1", "--limit-sign-ups", "off"))
        yield relay
    finally:
        relay.stop(signal.SIGKILL)


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.name)
async def test_first_use(kind: type[Edge], relay: Relay, edge_of: EdgeOf, tmp_path: Path, watch: Watch) -> None:
    """A person signs up, 10 MB go and come back across a reload and a crash, and no log has a token."""
    edge = edge_of(kind, relay.address.port, talkative=True)
    async with service(_returns) as returning, site(edge, relay, tmp_path / "agents", [returning.port]) as here:
        try:
            bob = Person(tmp_path / "bob", edge.url)
            bob.environment |= edge.trust
            signed = watch.ended(await bob.runs("sign-up", f"bob-{kind.name}", "--json"), shows=True)
            watch.learn("bob's", json.loads(signed.out)["token"])
            watch.learn("the agents'", relay.token)
            await _there_and_back(here)
        except BaseException as error:
            error.add_note(here.logs())
            raise
        watch.saw("the relay's log", relay.running.text)
    for name, text in edge.logs.items():
        watch.saw(f"{kind.name}'s {name}", text)
    assert not watch.leaks()


async def _returns(tcp: Tcp) -> None:
    """Return the data only after the client's half-close; half of the servers can't do that with plain connections."""
    await tcp.send(await tcp.receive_all())


async def _there_and_back(here: Site) -> None:
    """Reload the server while 10 MB go out, and kill it while they come back."""
    data = random.Random(here.edge.port).randbytes(_SIZE)
    async with await Tcp.connect(here.ports[0]) as tcp:
        await tcp.send(data[: _SIZE // 2])
        await here.edge.reload()
        await tcp.send(data[_SIZE // 2 :])
        tcp.finish()
        hashed = hashlib.sha256(await tcp.receive_exactly(_SIZE // 2))
        before = here.lost
        await here.edge.crash()
        await here.all_lost(before)
        hashed.update(await tcp.receive_all())
    assert hashed.digest() == hashlib.sha256(data).digest()
