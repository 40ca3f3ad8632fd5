"""Only a stream's own other end may resume it, once for each ATTACH."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.states import LegState
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import proof, stream_key
from kdispatch_protocol.wire.messages import Reset
from tests.core.conversation import Conversation, reset_of
from tests.core.resuming import HOST, KEY, SECRET, UUID, client, entry, hear, lose

_FORGED = {
    "made up": {"proof": "ab" * 32},
    "of another stream": {"proof": proof(KEY, "77" * 16, "host", 1)},
    "of the other end": {"proof": proof(KEY, UUID, "client", 1)},
    "of an earlier one": {"attach": 2, "proof": proof(KEY, UUID, "host", 1)},
    "under another host's key": {"proof": proof(stream_key(SECRET, "66" * 16), UUID, "host", 1)},
    "of another service": {"service": "ann/other"},
}


@pytest.mark.parametrize("changes", _FORGED.values(), ids=_FORGED)
@pytest.mark.parametrize("asked", [False, True], ids=["joined", "asked"])
def test_a_forged_attach_changes_nothing(changes: dict[str, object], *, asked: bool) -> None:
    """A forged ATTACH is refused with `bad_proof` and reported; the stream still waits for its true peer."""
    talk = Conversation()
    stream = client(talk)
    talk.table.write(stream, b"secret")
    talk.said()
    lose(talk)
    talk.events()
    number = stream.number
    hear(talk, entry(stream, **({"number": None} if asked else {}), **changes))
    said = talk.said()
    assert reset_of(said[0]) == "bad_proof"
    assert talk.events() == [events.AttachRefused(UUID, HOST, "bad_proof")]
    assert "DATA" not in [name for name, *_ in said]
    assert (stream.number == number) is asked  # the refused join has used up the number
    assert stream.leg is LegState.ATTACHING
    hear(talk, entry(stream))
    assert [payload for name, _, _, payload in talk.said() if name == "DATA"] == [b"secret"]


def test_an_attach_that_was_used_is_not_taken_again() -> None:
    """An earlier ATTACH of the peer, complete and with a valid proof, is given up, and the peer is waited for."""
    talk = Conversation()
    stream = client(talk)
    lose(talk)
    used = entry(stream)
    hear(talk, used)
    assert stream.leg is LegState.JOINED
    lose(talk)
    talk.events()
    number = stream.number
    hear(talk, dataclasses.replace(used, number=number))
    assert [(name, given) for name, given, *_ in talk.said()] == [("GONE", number), ("ATTACH", 0)]
    assert (stream.leg, talk.events()) == (LegState.ATTACHING, [])


def test_an_end_that_was_written_but_never_sent_can_not_have_arrived() -> None:
    """A peer that claims to have received an end that was never sent resets that stream only."""
    talk = Conversation()
    stream = client(talk)
    talk.table.write(stream, b"all")
    talk.said()
    talk.lose()
    talk.table.write_eof(stream)
    lose(talk)
    hear(talk, entry(stream, received=3, fin=True))
    assert reset_of(talk.said()[0]) == "offset_mismatch"
    assert stream.ended


def test_an_attach_without_a_proof_ends_the_session() -> None:
    """An ATTACH without a proof is malformed, and ends the session of the relay that passes it on."""
    talk = Conversation()
    stream = client(talk)
    lose(talk)
    content = entry(stream).content()
    del content["proof"]
    with pytest.raises(RemoteProtocolError):
        talk.hear(frame(frames.ATTACH, payload=json.dumps({"streams": [content]}).encode()))


@pytest.mark.parametrize("changes", [{"peer": "66" * 16}, {"role": "client"}])
def test_an_attach_of_somebody_else(changes: dict[str, str]) -> None:
    """A stream is bound to one process: any other gets `unknown_stream`, whatever it proves."""
    talk = Conversation()
    stream = client(talk)
    lose(talk)
    hear(talk, entry(stream, number=None, **changes))
    [(_, number, _, payload)] = talk.said()
    reset = Reset.parse(payload)
    assert (number, reset.code, reset.uuid) == (0, "unknown_stream", UUID)
    assert reset.process == changes.get("peer", HOST)
    assert stream.leg is LegState.ATTACHING
