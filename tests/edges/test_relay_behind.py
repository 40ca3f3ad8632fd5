"""A relay behind a server is used, replaced, killed and moved, and agents and people notice only what they must."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from tests.edges.asking import UPGRADE, ask, head
from tests.edges.conftest import EdgeOf
from tests.edges.more_servers import MORE, Stunnel, Varnish
from tests.edges.servers import EDGES, Caddy, Edge, Nginx
from tests.edges.site import Site, site
from tests.first_minutes.person import KDISPATCH, Person
from tests.net.harness import Process, Relay, eventually
from tests.net.tcp import echo, service
from tests.upgrade.load import Echoes, Visits

pytestmark = pytest.mark.slow

#: The options for operators, except that the drain is short, because no one else is connected.
_OPTIONS: Final = ("--trusted-proxy", "127.0.0.1", "--allowed-host", "localhost,127.0.0.1", "--drain-time", "5")
#: A header that asks the server to remove others.
_NAMED: Final = ("Connection: X-Forwarded-For, Via",)


def _kinds(small: type[Edge]) -> list[ParameterSet]:
    """One server in every run, all of them in the acceptance run."""
    return [
        pytest.param(small, id=f"small {small.name}"),
        *(pytest.param(kind, id=kind.name, marks=pytest.mark.accept) for kind in (*EDGES, *MORE)),
    ]


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    """A relay with the options for operators, for one test alone."""
    relay = Relay(tmp_path)
    try:
        await relay.start(*_OPTIONS)
        yield relay
    finally:
        relay.stop(signal.SIGKILL)


@pytest.mark.parametrize("kind", _kinds(Nginx))
async def test_relay_is_replaced_and_killed(kind: type[Edge], relay: Relay, edge_of: EdgeOf, tmp_path: Path) -> None:
    """Behind a server, agents do not notice a relay's upgrade, and while it is down all agents, also new ones, wait."""
    edge = edge_of(kind, relay.address.port)
    async with service(echo) as echoing, site(edge, relay, tmp_path / "agents", [echoing.port]) as here:
        bob = Person(tmp_path / "bob", edge.url)
        bob.environment |= edge.trust
        echoes, visits = Echoes(here.ports[0], 0.02), Visits(here.ports[0], 20)
        try:
            await _is_used(edge, bob)
            async with echoes.running(4):
                async with visits.running():
                    older = await relay.replace(*_OPTIONS)
                    assert await older.ended() == 0
                assert "finished: every agent has left" in older.err
                assert (visits.failed, echoes.lost, here.lost) == ([], [], 0)
                await _dies(here, bob)
            assert echoes.lost == []
        except BaseException as error:
            error.add_note(here.logs())
            raise


async def _is_used(edge: Edge, bob: Person) -> None:
    """The REST API works, the relay's refusals pass through, and strangers do not see its state."""
    signed = await bob.runs("sign-up", "bob")
    assert signed.status == 0, str(signed)
    for headers, status in (((*UPGRADE, "Origin: https://a.example"), 403), ((), 422)):
        request = head("GET", "/api/v1/tunnel", *headers)
        if headers:
            request = request.replace(b"Connection: close", b"Connection: Upgrade")
        refused = await ask(edge, request)
        assert (refused.status, refused.from_relay) == (status, True), refused.text
    if isinstance(edge, Stunnel):
        return  # the relay sees every caller as this machine, as docs/edges.md says
    for forged in ((), ("X-Forwarded-For: 127.0.0.1",), _NAMED):
        refused = await ask(edge, head("GET", "/api/v1/relay/state", *forged))
        # Varnish itself refuses a second Connection header.
        assert refused.status == (400 if isinstance(edge, Varnish) and forged == _NAMED else 403), forged


async def _dies(here: Site, bob: Person) -> None:
    """While the relay is down the server answers with its own error, and pending commands succeed after its return."""
    before = here.lost
    name = (await here.agents[0].says(r"is offered as (\S+)"))[1]
    here.relay.stop(signal.SIGKILL)
    away = await ask(here.edge, head("GET", "/api/v1/whoami"))
    if isinstance(here.edge, Stunnel):
        assert away.text == "", away.text  # stunnel has no HTTP, and closes
    else:
        assert away.status in {502, 503}
        assert not away.from_relay
    beginner = here.network.agent("connect", "connect", name, "--wait", "30")
    # At the same time: the longer the relay is down, the longer agents back off.
    ended, _ = await asyncio.gather(bob.runs("whoami"), beginner.says("Waiting for 30 s"))
    assert (ended.status, "relay_unreachable" in ended.err) == (6, True), str(ended)
    await here.relay.start()
    await beginner.says(r"is reached by 127\.0\.0\.1:(\d+)")
    await eventually(lambda: here.lost >= before + 2, expected=True)
    await here.all_back()


@pytest.mark.parametrize("kind", _kinds(Caddy))
async def test_relay_moves_to_another_port(kind: type[Edge], relay: Relay, edge_of: EdgeOf, tmp_path: Path) -> None:
    """If the server moves to a new relay before the old one ends, no session is lost and no connection fails."""
    edge = edge_of(kind, relay.address.port)
    command = [KDISPATCH, "relay", "serve", "--listen", "127.0.0.1:0", "--database", str(tmp_path / "relay.db")]
    async with service(echo) as echoing, site(edge, relay, tmp_path / "agents", [echoing.port]) as here:
        echoes, visits = Echoes(here.ports[0], 0.02), Visits(here.ports[0], 10)
        successor = Process("successor", command, tmp_path, {"KDISPATCH_SERVE_DRAIN_TIME": "0"})
        try:
            async with echoes.running(4), visits.running():
                edge.upstream = int((await successor.says(r"listening on http://127\.0\.0\.1:(\d+)"))[1])
                await edge.reload()
                relay.running.send_signal(signal.SIGTERM)
                assert await relay.running.ended() == 0
            assert "finished: every agent has left" in relay.running.err
            assert (visits.failed, echoes.lost, here.lost) == ([], [], 0)
        except BaseException as error:
            error.add_note(f"{here.logs()}\n--- successor\n{successor.text}")
            raise
        finally:
            here.network.stop()
            successor.stop(signal.SIGKILL)
