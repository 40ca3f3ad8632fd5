"""A relay's entrance after the first header: bodies, pipelined requests, unread answers, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from pathlib import Path

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_relay.door import arrivals
from tests.aio.twin import until
from tests.relay.support import relay_api
from tests.relay.test_door import HEAD, SHORT, Visitor, relay_with
from tests.relay.test_gate import _UPGRADE, _Agent, _request

POST = b"POST /api/v1/admins HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n"


@pytest.fixture(autouse=True)
def database(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "relay.db")


async def test_slow_bodies_keep_nobody_out(tmp_path: Path) -> None:
    """Requests whose bodies do not arrive are closed first when there are too many, and at their deadline anyway."""
    async with (
        relay_with(tmp_path, Limits(arrivals=5, hello=1.5)) as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        for number in range(5):
            visitor = await stack.enter_async_context(Visitor.of(relay.port))
            visitor.writer.write(POST + b'\r\n{"handle":')
            await until(lambda number=number: len(relay.arrivals) == number + 1)  # type: ignore[misc]
        await asyncio.sleep(0.1)  # all are being worked on
        async with asyncio.timeout(20):
            await stack.enter_async_context(_Agent.of(relay, b"\x11" * 32))
        await until(lambda: len(relay.arrivals) == 0)
        assert relay.arrivals.refused == {"busy": 1, "timed_out": 4}


async def test_a_body_that_comes_is_worked_on(tmp_path: Path) -> None:
    """A request whose body comes in pieces is answered, and its connection may then be idle."""
    async with relay_with(tmp_path) as relay, Visitor.of(relay.port) as visitor:
        visitor.writer.write(POST + b"\r\n")
        await asyncio.sleep(0.1)
        head = await visitor.ask(b'{"handle": "ann"}   ')
        assert head.startswith(b"HTTP/1.1 201 ")
        await asyncio.sleep(2 * SHORT.hello)
        assert (await visitor.ask(HEAD + b"\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_what_comes_right_behind_has_a_deadline(tmp_path: Path) -> None:
    """A request in the same packet as the one before has the same deadline as any other."""
    async with relay_with(tmp_path) as relay, Visitor.of(relay.port) as visitor:
        visitor.writer.write(HEAD + b"\r\n" + _request(_UPGRADE))
        assert await visitor.ended() < 4 * SHORT.hello
        assert relay.arrivals.refused == {"timed_out": 1}


async def test_a_body_behind_its_answer_costs_the_next_request_nothing(tmp_path: Path) -> None:
    """A connection whose refused body came late may be idle, and a tunnel on it has its full time."""
    limits = Limits(hello=0.6)
    async with relay_with(tmp_path, limits) as relay, Visitor.of(relay.port) as visitor:
        head = await visitor.ask(POST.replace(b"/api/v1/admins", b"/wp-login.php") + b"\r\n")
        assert head.startswith(b"HTTP/1.1 404 ")
        visitor.writer.write(b"x" * 20)
        await asyncio.sleep(0.4)
        assert (await visitor.ask(_request(_UPGRADE))).startswith(b"HTTP/1.1 101 ")
        assert await visitor.ended() > 0.5
        assert relay.arrivals.refused == {"timed_out": 1, "unknown_address": 1}


async def test_answers_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends requests and reads no answer is cut when an idle connection would be."""
    monkeypatch.setattr(arrivals, "_GRACE", 0.1)
    async with (
        relay_with(tmp_path, Limits(hello=0.3, keep_alive=0.3)) as relay,
        Visitor.of(relay.port) as visitor,
    ):
        visitor.writer.transport.pause_reading()  # type: ignore[attr-defined]
        visitor.writer.write((HEAD + b"\r\n") * 200_000)
        await until(lambda: len(relay.arrivals) == 1)
        await until(lambda: len(relay.arrivals) == 0)


@pytest.mark.parametrize("header", [b"", b"Expect: 100-continue\r\nContent-Length: 5\r\n"], ids=["plain", "expect"])
async def test_who_asks_and_is_gone_leaves_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, header: bytes
) -> None:
    """An upgrade whose sender has disconnected leaves no line in the log."""
    request = _request(_UPGRADE)[:-2] + header + b"\r\n"
    async with relay_with(tmp_path) as relay:
        for _ in range(5):
            async with Visitor.of(relay.port) as visitor:
                visitor.writer.write(request)
        await asyncio.sleep(0.1)
        await until(lambda: len(relay.arrivals) == 0)
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_refused_connections_end_with_the_relay(tmp_path: Path) -> None:
    """A connection that only had a refusal is closed when the relay ends, like any idle one."""
    async with relay_with(tmp_path) as relay, Visitor.of(relay.port) as visitor:
        assert (await visitor.ask(HEAD.replace(b"/healthz", b"/.env") + b"\r\n")).startswith(b"HTTP/1.1 404 ")
        await relay.turn_away()
        draining = asyncio.create_task(relay.drain(2, lambda _: None))
        assert await visitor.ended() < 1
        await draining


async def test_a_local_server_in_front_is_not_this_machine(tmp_path: Path) -> None:
    """A request forwarded by a local server has no right to this machine's own names."""
    async with relay_api(tmp_path / "relay.db", allowed_host="relay.example.org") as api:
        for forwarded, status in (({}, 401), ({"X-Forwarded-For": "203.0.113.7"}, 421)):
            answer = await api("GET", "/api/v1/whoami", headers={"Host": "localhost", **forwarded})
            assert answer.status == status
