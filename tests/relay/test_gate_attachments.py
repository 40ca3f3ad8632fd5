"""ATTACH at a relay with a store and a log: failed look-ups are repeated, and refusals are logged."""

from __future__ import annotations

import logging

import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Reset
from kdispatch_relay.gate import access
from tests.aio.twin import SERVICE, Running, running_gate, until
from tests.relay.test_gate import _Agent


def _attach(agent: _Agent, role: str, peer: str, number: int) -> None:
    entry = AttachEntry(
        uuid="77" * 16, service=SERVICE, role=role, peer=peer, number=number, received=0, limit=1 << 18, attach=1,
        proof="00" * 32,
    )  # fmt: skip
    agent.send(frame(frames.ATTACH, payload=Attach.of([entry], "t").encode()))


async def _joined(client: _Agent, host: _Agent) -> None:
    for agent, number in ((client, 5), (host, 7)):
        _, _, _, _, payload = await agent.next(frames.ATTACH)
        entry = Attach.parse(payload).entries()[0]
        if entry.number is None:  # first it was asked
            _, _, _, _, payload = await agent.next(frames.ATTACH)
            entry = Attach.parse(payload).entries()[0]
        assert entry.number == number


async def test_streams_do_not_end_because_the_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is unavailable, an ATTACH is neither refused nor forgotten: the relay repeats the look-up."""
    monkeypatch.setattr(access, "_ASK_AGAIN", 0.01)
    async with (
        running_gate() as relay,
        _Agent.of(relay, b"\x11" * 32) as client,
        _Agent.of(relay, b"\x22" * 32) as host,
    ):
        relay.store.error = KdispatchError("storage_unavailable")
        _attach(client, "client", host.process, 5)
        _attach(host, "host", client.process, 7)
        await until(lambda: relay.store.asked > 6)
        assert not client.frames and not host.frames
        relay.store.error = None
        await _joined(client, host)


async def test_a_session_that_ends_meanwhile_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-ups of a session that is gone end with it."""
    monkeypatch.setattr(access, "_ASK_AGAIN", 0.01)
    async with running_gate() as relay:
        async with _Agent.of(relay) as client:
            relay.store.error = KdispatchError("storage_unavailable")
            _attach(client, "client", "22" * 16, 5)
            await until(lambda: relay.store.asked > 1)
        await until(lambda: not relay.gate._access._work)


@pytest.mark.parametrize("code", ["revoked", "token_refused", "internal_error"])
async def test_what_the_store_refuses(code: str) -> None:
    """An agent that lost its right to a service cannot resume its streams."""
    async with running_gate() as relay, _Agent.of(relay) as client:
        relay.store.error = KdispatchError(code)
        _attach(client, "client", "22" * 16, 5)
        _, _, number, _, payload = await client.next(frames.RESET)
        assert (number, Reset.parse(payload).code) == (5, code)


async def test_refusals_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An attempt at another's stream is logged as a warning with its code and both processes; others are not."""
    caplog.set_level(logging.DEBUG, "kdispatch.relay")
    async with running_gate() as relay, _Agent.of(relay, b"\x11" * 32) as thief, _Agent.of(relay, b"\x22" * 32) as host:
        for code, level in (("bad_proof", logging.WARNING), ("unknown_stream", logging.DEBUG)):
            await _refuse(relay, thief, host, code)
            record = next(
                r for r in caplog.records if r.getMessage() == "An attach was refused." and vars(r)["code"] == code
            )
            assert record.levelno == level
            assert (vars(record)["agent"], vars(record)["peer"]) == (thief.process, host.process)


async def _refuse(relay: Running, thief: _Agent, host: _Agent, code: str) -> None:
    _attach(thief, "client", host.process, 5 if code == "bad_proof" else 7)
    await host.next(frames.ATTACH)
    host.send(frame(frames.RESET, payload=Reset(code=code, uuid="77" * 16, process=thief.process).encode()))
    await thief.next(frames.RESET)
    await until(lambda: not relay.gate.switch.intents.waiting)
