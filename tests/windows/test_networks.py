"""Ways to the relay under Wine: several URLs, proxies, certificates of one's own, and pinned keys."""

from __future__ import annotations

import base64
import contextlib
import signal
import socket
import time
from typing import Final

import pytest

from kdispatch.network.trust import seen_certificate
from tests.guards.promises import promised
from tests.net.black_hole import black_hole
from tests.net.harness import Relay, needs
from tests.net.tcp import Tcp, echo, service
from tests.net.test_addresses import another_relay, test_urls_of_two_relays
from tests.net.test_tls import restart_with_tls
from tests.networks.proxies import ESTABLISHED, ScriptedProxy, SocksServer
from tests.windows.environment import windows_path
from tests.windows.running import WindowsNetwork, echoes, same

__all__ = ["another_relay", "test_urls_of_two_relays"]

pytestmark = pytest.mark.slow

#: Seconds for two agents to start and connect. Windows itself gives up a silent address after 21 s.
_SOON: Final = promised(4.0)
_WANTS_PASSWORD: Final = (
    b'HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm="a"\r\nContent-Length: 0\r\n'
    b"Proxy-Connection: keep-alive\r\n\r\n"
)
_USER, _PASSWORD = "ann miller", "se@cret"
_CREDENTIALS: Final = "ann%20miller:se%40cret@"


@pytest.mark.timed
@pytest.mark.parametrize("first", ["silent", "closed"])
async def test_several_urls(network: WindowsNetwork, first: str) -> None:
    """Agents and commands go on to the second URL if the first one is silent or closed."""
    with contextlib.ExitStack() as stack:
        if first == "silent":
            dead = f"http://127.0.0.2:{stack.enter_context(black_hole())}"
        else:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        name = await network.service()
        async with service(echo) as running:
            began = time.monotonic()
            await network.host(name, running.port, "--relay", f"{dead}, {network.url}")
            _, port = await network.connect(name, "--relay", dead, "--relay", network.url)
            assert time.monotonic() - began < _SOON
            await echoes(port)
        assert (await network.run("whoami", "--relay", f"{dead},{network.url}", "--quiet")).out == "ann\n"


@pytest.fixture
async def behind_tls(network: WindowsNetwork, own_relay: Relay) -> WindowsNetwork:
    """Agents that trust the authority of the relay's certificate."""
    authority = await restart_with_tls(own_relay, network)
    network.environment["KDISPATCH_CA_FILE"] = windows_path(authority)
    return network


@needs("openssl")
@pytest.mark.parametrize("credentials", ["", _CREDENTIALS], ids=["open", "password"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_proxies(behind_tls: WindowsNetwork, own_relay: Relay, scheme: str, credentials: str) -> None:
    """Agents and commands go through a proxy that resolves the relay's name, and come back through it after a loss."""
    network, port = behind_tls, own_relay.address.port
    network.environment["KDISPATCH_SERVER_NAME"] = "127.0.0.1"
    answers = [_WANTS_PASSWORD, ESTABLISHED] if credentials else [ESTABLISHED]
    http = ScriptedProxy(*answers, through=True)
    socks = SocksServer(*([_USER, _PASSWORD] if credentials else []))
    name = await _created(network)
    network.environment["KDISPATCH_RELAY"] = f"https://relay.test:{port}"
    async with service(http if scheme == "http" else socks) as proxy, service(echo) as running:
        url = f"{scheme}://{credentials}127.0.0.1:{proxy.port}"
        host = await network.host(name, running.port, "--proxy", url)
        network.environment["ALL_PROXY"] = url
        client, reached = await network.connect(name)
        async with await Tcp.connect(reached) as tcp:
            await same(tcp)
            own_relay.stop(signal.SIGKILL)
            await own_relay.start(*_tls(own_relay))
            await same(tcp)
        assert (await network.run("whoami", "--quiet")).out == "ann\n"
    assert all("The session with the relay is back" in agent.err for agent in (host, client))
    asked = [request.split()[1] for request in http.requests] or [f"{host}:{port}" for host, port in socks.asked]
    assert len(asked) >= 5
    assert set(asked) == {f"relay.test:{port}"}
    if scheme == "http" and credentials:
        shown = base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()
        assert f"Proxy-Authorization: Basic {shown}" in http.requests[1]


@needs("openssl")
async def test_pins(behind_tls: WindowsNetwork, own_relay: Relay) -> None:
    """With the relay's pinned key agents work, with another one they end with the code that says so."""
    network = behind_tls
    name = await _created(network)
    async with service(echo) as running:
        key = await _key(own_relay)
        pins = f"sha256:{'00' * 32}, sha256:{key.hex()}"
        await network.host(name, running.port, "--pin", pins)
        _, port = await network.connect(name, "--pin", f"sha256:{base64.b64encode(key).decode()}")
        await echoes(port)
        refused = await network.run("agent", "connect", name, "--pin", f"sha256:{'00' * 32}")
        assert (refused.status, "[tls_wrong_pin]" in refused.err, key.hex() in refused.err) == (6, True, True)
        doctor = await network.run("doctor", "--pin", pins)
        assert "OK    upgrade" in doctor.out, doctor
        assert "FAIL" not in doctor.out  # its certificate ends soon, which is a warning


async def _key(relay: Relay) -> bytes:
    sock = socket.create_connection(("127.0.0.1", relay.address.port))
    sock.setblocking(False)
    found = await seen_certificate(sock, "127.0.0.1")
    assert found is not None
    return found.key


def _tls(relay: Relay) -> list[str]:
    return ["--tls-cert", str(relay.folder / "relay.pem"), "--tls-key", str(relay.folder / "relay.key")]


async def _created(network: WindowsNetwork) -> str:
    assert (await network.run("service", "create", "web")).status == 0
    return "ann/web"
