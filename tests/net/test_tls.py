"""A relay with its own certificate, from a CA that only some agents know."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import socket
import subprocess
from pathlib import Path
from typing import Final

import pytest

from kdispatch.network.trust import seen_certificate
from tests.net.harness import MIB, Network, Relay, needs
from tests.net.tcp import Tcp, echo, service

pytestmark = [pytest.mark.slow, needs("openssl")]

_SIZE: Final = 20 * MIB


def _certificate(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """Create a certificate and its key, valid for two days."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    config = folder / "openssl.cnf"  # an empty one: the system's adds different things in different places
    config.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    command = ["openssl", "req", "-config", str(config), "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"]
    subprocess.run(
        [*command, "-out", str(certificate), "-keyout", str(key), *options], check=True, capture_output=True, timeout=30
    )
    return certificate, key


def _sign(relay: Relay, ca: Path, ca_key: Path) -> tuple[Path, Path]:
    """Create a certificate for the relay, replacing one that is there."""
    signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-addext", "basicConstraints=critical,CA:FALSE"]
    return _certificate(relay.folder, "relay", *signed, "-addext", "subjectAltName=IP:127.0.0.1")


async def restart_with_tls(relay: Relay, network: Network) -> Path:
    """Restart the relay with a certificate; returns that of the CA that signed it."""
    ca, ca_key = _certificate(
        relay.folder, "ca", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"
    )
    certificate, key = _sign(relay, ca, ca_key)
    relay.stop()
    await relay.start("--tls-cert", str(certificate), "--tls-key", str(key))
    assert relay.url.startswith("https://")
    network.environment["KDISPATCH_RELAY"] = relay.url
    return ca


async def _echo_and_digest(tcp: Tcp) -> None:
    """Send everything back; after its end, send its SHA-256."""
    hashed = hashlib.sha256()
    async for chunk in tcp.chunks():
        hashed.update(chunk)
        await tcp.send(bytes(chunk))
    await tcp.send(hashed.digest())


async def test_transfer_over_tls(own_relay: Relay, network: Network) -> None:
    """20 MB arrive complete each way at once, and so does what the service sends after the client's end."""
    data = random.Random(10).randbytes(_SIZE)
    hashed = hashlib.sha256(data).digest()
    name = await network.service()
    authority = await restart_with_tls(own_relay, network)
    network.environment["SSL_CERT_FILE"] = str(authority)
    async with service(_echo_and_digest) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with asyncio.timeout(60), await Tcp.connect(port) as tcp:

            async def send() -> None:
                await tcp.send(data)
                tcp.finish()

            received, _ = await asyncio.gather(tcp.digest(_SIZE), send())
            assert received == (_SIZE, hashed)
            assert await tcp.receive_all() == hashed


async def test_a_new_certificate_under_running_streams(own_relay: Relay, network: Network) -> None:
    """New connections get the new certificate, at once with SIGHUP and otherwise in seconds; streams notice nothing."""
    name = await network.service()
    authority = await restart_with_tls(own_relay, network)
    network.environment["SSL_CERT_FILE"] = str(authority)
    place = own_relay.url.rpartition(":")[2]

    async def shown() -> bytes:
        sock = socket.create_connection(("127.0.0.1", int(place)))
        sock.setblocking(False)
        found = await seen_certificate(sock, "127.0.0.1")
        assert found is not None
        return found.key

    async with service(echo) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            for by_signal in (True, False):
                before = await shown()
                _sign(own_relay, authority, authority.with_suffix(".key"))
                if by_signal:
                    own_relay.running.send_signal(signal.SIGHUP)
                async with asyncio.timeout(2 if by_signal else 15):
                    while await shown() == before:  # noqa: ASYNC110 - no event tells
                        await asyncio.sleep(0.1)
                await tcp.send(b"hello")
                assert await tcp.receive_exactly(5) == b"hello"
    assert own_relay.running.text.count("was read again") >= 2
    assert "Lost the session" not in "".join(process.text for process in network.processes)


async def test_unknown_authority_ends_the_start(own_relay: Relay, network: Network) -> None:
    """Without the CA neither agent continues: exit 6, and the code of the reason."""
    name = await network.service()
    await restart_with_tls(own_relay, network)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connect = network.agent("connect", "connect", name)
        host = network.agent("host", "host", name, "--port", str(listener.getsockname()[1]))
        assert [await agent.ended() for agent in (connect, host)] == [6, 6]
    assert "[tls_unknown_ca]" in connect.err
    assert "[tls_unknown_ca]" in host.err
