"""Agents whose access is revoked stop, report the reason, and do not try again; and clients that choose their host."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

import kdispatch
from kdispatch.rest.client import CreatedToken
from tests.net.harness import _KDISPATCH, Network, Process, Relay, eventually
from tests.net.tcp import Tcp, echo, service

pytestmark = [pytest.mark.slow, pytest.mark.leaves("kdispatch uplink")]


async def _echoes(tcp: Tcp) -> None:
    await tcp.send(b"one")
    assert await tcp.receive_exactly(3) == b"one"


async def _is_cut(tcp: Tcp) -> None:
    with pytest.raises(ConnectionResetError):
        await tcp.receive()


class Access:
    """A service that needs tokens, and agents that got theirs in files."""

    def __init__(self, relay: Relay, network: Network) -> None:
        self.network = network
        self.relay = relay
        self.name = ""

    async def create(self, access: str = "token", *, pins: bool = False) -> None:
        self.name = await self.network.service()
        async with self.relay.rest() as rest:
            await rest.update_service(self.name, access=access, pins=pins)

    async def token(self, purpose: str) -> CreatedToken:
        async with self.relay.rest() as rest:
            return await rest.create_token("agent", purpose, service=self.name.partition("/")[2])

    def file(self, token: CreatedToken) -> str:
        path = self.network.folder / token.id
        path.touch(0o600)
        path.write_text(token.token)
        return str(path)

    async def host(self, port: int) -> tuple[Process, CreatedToken]:
        token = await self.token("host")
        return await self.network.host(self.name, port, "--token-file", self.file(token)), token

    async def client(self, *options: str) -> tuple[Process, int, CreatedToken]:
        token = await self.token("connect")
        process, port = await self.network.connect(self.name, "--token-file", self.file(token), *options)
        return process, port, token

    async def revoke(self, token: CreatedToken) -> None:
        async with self.relay.rest() as rest:
            await rest.revoke_token(token.id)


@pytest.fixture
def access(request: pytest.FixtureRequest, network: Network) -> Access:
    """On the test's own relay if it asks for one, like ``network``."""
    name = "own_relay" if "own_relay" in request.fixturenames else "shared_relay"
    relay: Relay = request.getfixturevalue(name)
    return Access(relay, network)


async def _stopped(agent: Process, code: str = "revoked", status: int = 4) -> None:
    """Whether it has ended with the reason, and its last message is not a try."""
    assert await agent.ended(5) == status, agent.err
    what = agent.err.strip().splitlines()[-3]
    assert what.startswith("kdispatch: ") and what.endswith(f"[{code}]"), agent.err
    assert "Reconnecting" not in agent.err


async def test_an_idle_client(access: Access) -> None:
    """An agent without a stream learns of it at its next one, and ends; another with the same token ends at once."""
    await access.create()
    async with service(echo) as local:
        await access.host(local.port)
        client, port, token = await access.client()
        idle, idle_port = await access.network.connect(access.name, "--token-file", access.file(token))
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp)
            await access.revoke(token)
            await _is_cut(tcp)
        await _stopped(client)
        assert idle.status is None
        async with await Tcp.connect(idle_port) as late:
            await _is_cut(late)
        await _stopped(idle)


async def test_a_rotated_service_keeps_its_clients(access: Access) -> None:
    """After a rotation without overlap, the hosts of the old token end, and no client does."""
    await access.create("public")
    async with access.relay.rest() as rest, service(echo) as local:
        first = (await rest.rotate_service(access.name)).token
        network = access.network
        network.environment["KDISPATCH_TOKEN"] = first
        host = await network.host(access.name, local.port)
        del network.environment["KDISPATCH_TOKEN"]
        client, port = await network.connect(access.name)
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp)
            network.environment["KDISPATCH_TOKEN"] = (await rest.rotate_service(access.name)).token
            await _is_cut(tcp)
            await _stopped(host)
        await network.host(access.name, local.port)
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp)
        assert client.status is None


async def test_a_service_that_is_public_no_more(access: Access) -> None:
    """When a service stops being public, a client without a token ends with its stream."""
    await access.create("public")
    del access.network.environment["KDISPATCH_TOKEN"]
    async with service(echo) as local:
        await access.host(local.port)
        client, port = await access.network.connect(access.name)
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp)
            async with access.relay.rest() as rest:
                await rest.update_service(access.name, access="token")
            await _is_cut(tcp)
        await _stopped(client)


@pytest.mark.accept
async def test_a_host_that_stood_still(access: Access, own_relay: Relay) -> None:
    """A host whose token was revoked while it was stopped learns of it at the next relay, and ends."""
    await access.create()
    async with service(echo) as local:
        host, token = await access.host(local.port)
        client, port, _ = await access.client()
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp)
            host.send_signal(signal.SIGSTOP)
            await access.revoke(token)
            own_relay.stop(signal.SIGKILL)
            await own_relay.start()
            host.send_signal(signal.SIGCONT)
            assert await host.ended() == 4
            assert "[revoked]" in host.err.strip().splitlines()[-3]
        assert client.status is None


def _ends_with_why(log: Path) -> bool:
    return re.search(r"kdispatch: .*\[revoked\]\n  where: .*\n  try: .*\n\Z", log.read_text()) is not None


async def test_in_the_background(access: Access) -> None:
    """A detached agent ends as well, and its log ends with the reason."""
    await access.create()
    async with service(echo) as local:
        await access.host(local.port)
        token = await access.token("connect")
        arguments = ("connect", access.name, "--token-file", access.file(token), "--detach")
        started = access.network.agent("detached", *arguments)
        assert await started.ended() == 0
        port = int((await started.says(r"is reached by 127\.0\.0\.1:(\d+)"))[1])
        log = Path((await started.says(r"log (\S+)"))[1])
        async with await Tcp.connect(port) as tcp:
            await _echoes(tcp)
            await access.revoke(token)
            await _is_cut(tcp)
        await eventually(lambda: _ends_with_why(log), expected=True)
        status = access.network.program("status", _KDISPATCH, "status")
        assert await status.ended() == 0 and "connect of" not in status.text


async def test_a_program(access: Access, own_relay: Relay) -> None:
    """The library's connections end with the code, and further ones raise it without asking the relay."""
    await access.create()
    async with service(echo) as local:
        await access.host(local.port)
        token = await access.token("connect")
        async with kdispatch.Connector(own_relay.url, token=token.token) as connector:
            reader, writer = await connector.open_connection(access.name)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            await access.revoke(token)
            with pytest.raises(kdispatch.StreamReset) as caught:
                await reader.read()
            assert caught.value.code == "revoked"
            own_relay.stop(signal.SIGKILL)
            with pytest.raises(kdispatch.StreamReset) as again:
                await connector.open_connection(access.name)
            assert (again.value.code, again.value.text) == ("revoked", caught.value.text)
            assert not connector.over


@pytest.mark.accept
async def test_a_pinned_host(access: Access) -> None:
    """Every connection goes to the host whose id has the given beginning; without the right nothing is started."""
    await access.create(pins=True)
    async with service(echo) as first, service(echo) as second:
        hosts = [(await access.host(local.port))[0] for local in (first, second)]
        wanted = (await hosts[1].says(r"host ([0-9a-f]{32})"))[1]
        client, port, _ = await access.client("--host", wanted[:8])
        for _ in range(6):
            async with await Tcp.connect(port) as tcp:
                await _echoes(tcp)
        assert (first.accepted, second.accepted) == (0, 6)
        status = access.network.program("status", _KDISPATCH, "status", "--json")
        await status.ended()
        assert f'"host": "{wanted}"' in status.text
        absent = access.network.agent("connect", "connect", access.name, "--host", "0" * 32, "--wait", "0")
        assert (await absent.ended(), "[no_live_host]" in absent.err) == (3, True)
        async with access.relay.rest() as rest:
            await rest.update_service(access.name, pins=False)
        async with await Tcp.connect(port) as tcp:
            await _is_cut(tcp)
        await _stopped(client, "not_permitted", 5)
        late = access.network.agent("connect", "connect", access.name, "--host", wanted)
        assert (await late.ended(), "--pins" in late.err) == (5, True)
