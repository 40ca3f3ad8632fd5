"""Threat 20: log injection."""

from __future__ import annotations

import io
import json
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdispatch_protocol.process.logs import configure_logs
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from tests.first_minutes.watch import token_of
from tests.net.harness import Network
from tests.net.tcp import echo, service
from tests.relay.test_door import Visitor
from tests.security.hostile_relay import hostile_relay
from tests.security.site import Agent, Caller, carried, made, offers, site

_EVIL = "\x1b[2J\x1b]0;pwned\x07\n2026-01-01T00:00:00Z error the disk is full\r\x9b31m\u202e"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """A relay's log as text, at its most verbose level."""
    root, ours = logging.getLogger(), logging.getLogger("kdispatch")
    before = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    configure_logs("text", verbose=True, stream=stream)
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


async def test_raw_clients(folder: Path, log: io.StringIO) -> None:
    """Each record is one line of printable characters, whatever a client puts into names, codes, texts and headers."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web", access="public")
        assert await offers(host, 1, "ann/web", admin) == "OFFERED"
        await carried(client, host, 1, "ann/web")
        client.send(frame(frames.RESET, 1, payload=json.dumps({"code": "cancelled", "text": _EVIL}).encode()))
        await host.next(frames.RESET)
        client.send(
            frame(frames.OPEN, 3, payload=json.dumps({"service": _EVIL, "uuid": secrets.token_hex(16)}).encode())
        )
        await client.end()
        async with Visitor.of(relay.port) as visitor:
            visitor.writer.write(b"GET /api/v1/\x1b[2J HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: \x9b31m\x1b[31m\r\n\r\n")
            await visitor.reader.readuntil(b"\r\n\r\n")
        await caller("POST", "/api/v1/services", admin, json={"name": _EVIL})
    # Other components log input as well.
    logging.getLogger("aiohttp.server").error("Error handling request from %s", _EVIL, extra={"agent": _EVIL})
    written = log.getvalue()
    assert "stream ended" in written and "Error handling request" in written
    lines = written.splitlines(keepends=True)
    assert all(line.startswith("20") and line.endswith("\n") and line[:-1].isprintable() for line in lines), lines[-3:]
    assert not [line for line in lines if line.startswith("2026-01-01T00:00:00Z")]


@pytest.mark.slow
async def test_a_hostile_relays_words(tmp_path: Path) -> None:
    """A relay's text reaches an agent's terminal only as printable characters."""
    async with hostile_relay() as relay, service(echo) as target:
        relay.refuses = json.dumps({"code": "not_permitted", "text": f"No: {_EVIL}"}).encode()
        network = Network(tmp_path, f"http://127.0.0.1:{relay.port}", token_of("svc", 1))
        host = network.agent("host", "host", "ann/web", "--port", str(target.port))
        try:
            assert await host.ended()
            assert "No: " in host.text
            assert not [c for c in host.text if not c.isprintable() and c != "\n"], host.text
            assert not [line for line in host.text.splitlines() if line.startswith("2026-01-01T00:00:00Z")]
        finally:
            network.stop()
