"""Threat 16: impersonating a peer at re-attach, and superseding another's process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kdispatch_protocol.endpoint.states import LegState
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import process_id, proof, stream_key
from kdispatch_protocol.wire.messages import Hello
from tests.core.conversation import Conversation, reset_of
from tests.core.resuming import KEY, SECRET, UUID, client, entry, hear, lose
from tests.security.site import Agent, Caller, carried, made, offers, site

_FORGED = {
    "made up": {"proof": "ab" * 32},
    "of another stream": {"proof": proof(KEY, "77" * 16, "host", 1)},
    "of the other side": {"proof": proof(KEY, UUID, "client", 1)},
    "replayed": {"attach": 2, "proof": proof(KEY, UUID, "host", 1)},
    "of a displaced host": {"proof": proof(stream_key(SECRET, "66" * 16), UUID, "host", 1)},
}


@pytest.mark.parametrize("forged", _FORGED.values(), ids=_FORGED)
def test_only_its_own_peer_takes_a_stream_up(forged: dict[str, object]) -> None:
    """A proof for another peer, stream, side or number gets no data, and the true proof then does."""
    talk = Conversation()
    stream = client(talk)
    talk.table.write(stream, b"secret")
    talk.said()
    lose(talk)
    hear(talk, entry(stream, **forged))
    said = talk.said()
    assert "DATA" not in [name for name, *_ in said]
    assert reset_of(said[0]) == "bad_proof"
    assert stream.leg is LegState.ATTACHING
    hear(talk, entry(stream))
    assert [payload for name, _, _, payload in talk.said() if name == "DATA"] == [b"secret"]


def test_a_used_one_is_not_taken_again() -> None:
    """A replay of an ATTACH that was accepted once does not join: the stream still waits for its peer."""
    talk = Conversation()
    stream = client(talk)
    lose(talk)
    used = entry(stream)
    hear(talk, used)
    lose(talk)
    hear(talk, dataclasses.replace(used, number=stream.number))
    assert talk.names() == ["GONE", "ATTACH"]
    assert stream.leg is LegState.ATTACHING


async def test_a_process_is_who_has_its_secret(folder: Path) -> None:
    """A HELLO that claims another process's id takes nothing from it; only the secret identifies a process."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client_,
    ):
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web", access="public")
        assert await offers(host, 1, "ann/web", admin) == "OFFERED"
        at_host = await carried(client_, host, 1, "ann/web")
        async with Agent.of(relay, hello=False) as thief:
            # The id is public; this sends it as a secret, as a predecessor's secret, and in an unknown field.
            claims = Hello(versions=[1], secret=(host.process * 2), predecessors=[host.process * 2])
            said = claims.encode()[:-1] + f',"process":"{host.process}"}}'.encode()
            thief.send(frame(frames.HELLO, payload=said))
            await thief.next(frames.WELCOME)
            assert process_id(bytes.fromhex(host.process * 2)) in relay.relay.gate.switch.by_process  # type: ignore[attr-defined]  # the real gate
            client_.send(frame(frames.DATA, 1, 0, b"x"))
            assert (await host.next(frames.DATA))[2] == at_host
            assert [one.host for one in relay.relay.gate.hosts_of("ann/web")]
            assert relay.relay.gate.state().sessions == 3
        async with Agent.of(relay, b"\x11" * 32):
            await host.end()
            assert host.wire.closing is not None and host.wire.closing.reason == "superseded"
