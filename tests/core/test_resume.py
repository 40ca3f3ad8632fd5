"""One end of a stream whose leg was lost: what it sends, and how it reacts to the peer."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.states import LegState, State
from kdispatch_protocol.endpoint.tombstones import Tombstones
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import ack_frame, frame
from kdispatch_protocol.wire.identity import proof
from kdispatch_protocol.wire.messages import Attach, Open, Reset, reset_frame
from tests.core.conversation import SERVICE, WELCOME, Conversation, reset_of
from tests.core.resuming import CLIENT, HOST, KEY, UUID, attached, client, entry, hear, host, lose, lost_before_opened


def test_what_is_said_in_the_next_session() -> None:
    """After WELCOME an agent sends its streams, under new numbers with what was received, then offers, then opens."""
    talk = Conversation(offer=True)
    mine = client(talk)
    theirs = host(talk, uuid="44" * 16)
    talk.hear(frame(frames.DATA, mine.number, 0, b"hello"))
    talk.table.open(SERVICE, "99" * 16, talk.now)
    talk.said()
    said = lose(talk)
    assert [name for name, *_ in said] == ["HELLO", "ATTACH", "ATTACH", "OFFER", "OPEN"]
    assert json.loads(said[0][3])["mode"] == "replace"
    [one, two] = attached(said)
    assert (one.uuid, one.role, one.peer, one.number, one.received, one.attach) == (UUID, "client", HOST, 1, 5, 1)
    assert one.proof == proof(KEY, UUID, "client", 1)
    assert (two.role, two.peer, two.number, two.received, two.opening) == ("host", CLIENT, 3, 0, False)
    assert [Attach.parse(p).token for name, _, _, p in said if name == "ATTACH"] == ["cli", "t"]
    assert (mine.leg, theirs.leg) == (LegState.ATTACHING, LegState.ATTACHING)


def test_nothing_is_sent_before_the_peer_has_attached_and_then_what_it_lacks() -> None:
    """After the peer's ATTACH, bytes that it has are not sent again, all others are, and then an ACK."""
    talk = Conversation()
    stream = client(talk)
    talk.table.write(stream, b"0123456789")
    talk.said()
    assert "DATA" not in [name for name, *_ in lose(talk)]
    talk.table.write(stream, b"abc")
    assert talk.said() == []
    hear(talk, entry(stream, received=4))
    said = talk.said()
    assert [(name, value, payload) for name, _, value, payload in said if name == "DATA"] == [("DATA", 4, b"456789abc")]
    assert said[0][0] == "ACK"
    assert stream.outbound.base == 4


def test_the_limit_of_an_attach_counts_downwards_too() -> None:
    """The limit in the peer's ATTACH replaces the earlier one, even if it is lower."""
    talk = Conversation()
    stream = client(talk)
    lose(talk)
    hear(talk, entry(stream, limit=3))
    talk.table.write(stream, b"0123456789")
    assert [payload for name, _, _, payload in talk.said() if name == "DATA"] == [b"012"]


def test_an_end_is_repeated_until_it_is_acknowledged() -> None:
    """FIN is sent again under the new number, unless the peer has it: then the stream finishes."""
    for had in (False, True):
        talk = Conversation()
        stream = client(talk)
        talk.table.write(stream, b"all")
        talk.table.write_eof(stream)
        talk.said()
        talk.hear(frame(frames.FIN, 1, 0))
        lose(talk)
        talk.events()
        hear(talk, entry(stream, received=3, fin=had))
        names = talk.names()
        assert names == (["ACK"] if had else ["ACK", "FIN"])
        finished = [events.EndAcknowledged(stream), events.StreamFinished(stream)] if had else []
        assert talk.events() == finished


@pytest.mark.parametrize("wrong", [{"received": 4}, {"received": 2, "fin": True}, {"received": 3, "fin": True}])
def test_a_peer_that_claims_too_much(wrong: dict[str, object]) -> None:
    """A peer cannot have received bytes, or an end, that were never sent: the stream is reset."""
    talk = Conversation()
    stream = client(talk)
    talk.table.write(stream, b"all")
    talk.said()
    lose(talk)
    hear(talk, entry(stream, **wrong))
    assert reset_of(talk.said()[0]) == "offset_mismatch"
    assert stream.state is State.RESET


def test_asked_by_the_peer_an_end_attaches_once() -> None:
    """An entry without a number makes a joined stream attach as well; until the join, its leg stays as it was."""
    talk = Conversation()
    stream = client(talk)
    hear(talk, entry(stream, number=None))
    [said] = attached(talk.said())
    assert (said.number, stream.number, stream.leg) == (3, 1, LegState.JOINED)
    hear(talk, entry(stream, number=None))
    talk.table.write(stream, b"meanwhile")
    assert [(name, number) for name, number, *_ in talk.said()] == [("DATA", 1)]
    hear(talk, entry(stream, number=3, received=4))
    assert [(name, number, value) for name, number, value, _ in talk.said()] == [("ACK", 3, 0), ("DATA", 3, 4)]
    talk.hear(
        frame(frames.DATA, 1, 0, b"late"),
        frame(frames.GONE, 1),
        frame(frames.RESET, 1, payload=Reset(code="closed").encode()),
    )
    assert (stream.inbound.received, stream.number, stream.leg) == (0, 3, LegState.JOINED)


def test_an_entry_with_a_dead_number_is_ignored() -> None:
    """A join under a number that has ended has no effect."""
    talk = Conversation()
    stream = client(talk)
    lose(talk)
    hear(talk, entry(stream, number=77))
    assert talk.said() == []
    assert stream.leg is LegState.ATTACHING


def test_the_grace() -> None:
    """A detached stream is reset after 120 s, counted from the first loss; an attached one is not."""
    for back in (False, True):
        talk = Conversation()
        stream = client(talk)
        lose(talk)
        began = talk.now
        talk.wait(60)
        lose(talk)
        if back:
            hear(talk, entry(stream))
        assert talk.table.resumption.expires(stream) == (None if back else began + 120)
        talk.events()
        talk.wait(59)
        assert talk.events() == []
        talk.wait(1.1)
        codes = [e.code for e in talk.events() if isinstance(e, events.StreamWasReset)]
        assert codes == ([] if back else ["resume_expired"])


def test_gone_detaches_and_attaches_in_the_same_session() -> None:
    """When the relay reports that the other leg is lost, the stream gets a new number at once."""
    talk = Conversation()
    stream = client(talk)
    talk.hear(frame(frames.GONE, 1))
    [said] = attached(talk.said())
    assert said.number == stream.number == 3
    talk.hear(frame(frames.GONE, 1))  # of a number that has ended
    assert talk.said() == []


def test_what_became_of_a_stream_is_told_to_whoever_asks() -> None:
    """A stream that ended while its peer was away is answered with its code, an unknown one with `unknown_stream`."""
    talk = Conversation(offer=True)
    stream = host(talk)
    talk.hear(frame(frames.DATA, 2, 0, b"x"))
    said = entry(stream, number=None)
    talk.lose()
    talk.table.reset(stream, "host_refused")
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    talk.said()
    for asked, code in ((said, "host_refused"), (dataclasses.replace(said, uuid="88" * 16), "unknown_stream")):
        hear(talk, asked)
        assert reset_of(talk.said()[0]) == code
    talk.wait(181.1)
    hear(talk, said)
    assert reset_of(talk.said()[0]) == "unknown_stream"
    assert len(talk.table.tombstones) == 0


def test_a_client_that_had_not_heard_of_its_host() -> None:
    """A client that has sent early data asks that host alone; its entry opens the stream and says where to continue."""
    talk = Conversation()
    stream = client(talk, opened=False)
    talk.table.write(stream, b"request")
    assert talk.names() == ["EARLY"]
    [said] = attached(lose(talk))
    assert (said.opening, said.peer) == (True, HOST)
    talk.events()
    hear(talk, entry(stream, received=3))
    assert (talk.events(), talk.names()) == ([], ["ACK"])
    talk.hear(ack_frame(stream.number, 3, 65536, fin=False))
    assert talk.events() == [events.StreamOpened(stream)]
    assert [payload for name, _, _, payload in talk.said() if name == "DATA"] == [b"uest"]


@pytest.mark.parametrize(("code", "then"), [("unknown_stream", None), ("cancelled", "cancelled")])
def test_a_host_that_gave_the_stream_up_before_the_join(code: str, then: str | None) -> None:
    """A join opens a stream only with the host's first frame: a RESET before it is the host's answer to the OPEN."""
    talk, stream = lost_before_opened()
    hear(talk, entry(stream))
    talk.said()
    talk.hear(frame(frames.RESET, stream.number, payload=Reset(code=code).encode()))
    assert [event.code for event in talk.events() if isinstance(event, events.StreamWasReset)] == (
        [then] if then else []
    )
    assert talk.names() == ([] if then else ["OPEN"])


def test_a_join_without_a_word_of_the_host_is_asked_for_again() -> None:
    """A client that loses its session between the join and the host's first frame asks the same host again."""
    talk, stream = lost_before_opened()
    hear(talk, entry(stream))
    [said] = attached(lose(talk))
    assert (said.opening, said.peer, said.attach) == (True, HOST, 2)
    hear(talk, entry(stream, attach=2))
    talk.hear(frame(frames.DATA, stream.number, 0, b"hello"))
    assert stream.opened
    assert [payload for name, _, _, payload in talk.said() if name == "DATA"] == [b"request"]


@pytest.mark.parametrize(
    ("code", "then"),
    [
        ("unknown_stream", None),
        ("peer_restarted", "open_interrupted"),
        ("host_refused", "host_refused"),
        ("revoked", "revoked"),
        ("closed", "open_interrupted"),
    ],
)
def test_a_client_asks_elsewhere_only_when_nothing_was_delivered(code: str, then: str | None) -> None:
    """`unknown_stream` from the host that may have the early data allows a new open; any other code ends the stream."""
    talk, stream = lost_before_opened()
    talk.hear(frame(frames.RESET, stream.number, payload=Reset(code=code).encode()))
    if then is None:
        assert talk.names() == ["OPEN"]
        assert stream.state is State.OPENING
    else:
        [event] = talk.events()
        assert isinstance(event, events.StreamWasReset)
        assert event.code == then


def test_a_host_that_stays_away_interrupts_an_open() -> None:
    """A client that waits for the one host that may have its data gives up after `open_wait`."""
    talk, _ = lost_before_opened()
    talk.wait(30.1)
    [event] = talk.events()
    assert isinstance(event, events.StreamWasReset)
    assert event.code == "open_interrupted"


@pytest.mark.parametrize(("heard", "opening", "code"), [
    (False, True, "unknown_stream"), (True, True, "cancelled"), (False, False, "cancelled"), (True, False, "cancelled")
])  # fmt: skip
def test_whether_anything_was_delivered_decides_the_answer(*, heard: bool, opening: bool, code: str) -> None:
    """A host answers `unknown_stream` to a client that would open elsewhere only if the stream delivered no byte."""
    tombstones = Tombstones(DEFAULT_LIMITS)
    tombstones.add(UUID, "cancelled", CLIENT, 10.0, heard=heard)
    assert tombstones.answer(UUID, CLIENT, 11.0, opening=opening) == code
    assert tombstones.answer(UUID, "66" * 16, 11.0, opening=opening) == "unknown_stream"


def test_a_process_that_had_to_forget_does_not_say_that_it_never_knew() -> None:
    """Beyond its bound a process drops the oldest tombstone, and denies no stream until that one would have expired."""
    tombstones = Tombstones(Limits(tombstones=1, grace=10, tombstone_extra=10))
    tombstones.add("a" * 32, "cancelled", CLIENT, 0.0, heard=True)
    tombstones.add("b" * 32, "closed", CLIENT, 5.0, heard=True)
    assert len(tombstones) == 1
    assert tombstones.answer("a" * 32, CLIENT, 19.0, opening=True) == "resume_expired"
    assert tombstones.answer("a" * 32, CLIENT, 21.0, opening=True) == "unknown_stream"


def test_a_stream_that_is_opened_anew_replaces_the_one_that_waits() -> None:
    """A stream that its client opens again replaces the detached one; an OPEN by another process is refused."""
    talk = Conversation(offer=True)
    first = host(talk)
    lose(talk)
    talk.events()
    stranger = Open(service=SERVICE, uuid=UUID, limit=65536, attempt=1, process="66" * 16, key="00" * 32)
    talk.hear(frame(frames.OPEN, 2, payload=stranger.encode()))
    assert reset_of(talk.said()[0]) == "bad_request"
    again = Open(service=SERVICE, uuid=UUID, limit=65536, attempt=1, process=CLIENT, key=KEY.hex())
    talk.hear(frame(frames.OPEN, 4, payload=again.encode()))
    # A client that was joined to the first one meanwhile opens it again, because of this code.
    assert reset_of(talk.said()[0]) == "unknown_stream"
    assert first.state is State.RESET
    assert talk.table.by_uuid[UUID] is not first


def test_a_reset_on_an_older_session_does_not_end_what_was_attached_anew() -> None:
    """A RESET of an OPEN on an older session does not end a stream that was attached in a newer one."""
    talk = Conversation(offer=True)
    stream = host(talk)
    older = talk.session
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    talk.said()
    hear(talk, entry(stream, number=None, opening=True))
    [ours] = attached(talk.said())
    newer, talk.session = talk.session, older
    talk.hear(reset_frame(2, "cancelled", "The client's session was lost."))
    assert talk.said() == []
    talk.session = newer
    hear(talk, entry(stream, number=ours.number, opening=True))
    assert talk.names() == ["ACK"]
    assert not stream.ended


def test_an_older_entry_is_taken_back_when_a_newer_session_is_lost() -> None:
    """When a newer session is lost, its entry is taken back in the older one, because a join may be on its way."""
    talk = Conversation()
    stream = client(talk)
    talk.hear(frame(frames.GONE, stream.number))
    [waiting] = attached(talk.said())
    older = talk.session
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert [one.uuid for one in attached(talk.said())] == [UUID]  # it moves
    talk.lose()
    talk.session = older
    said = talk.said()
    assert [(name, number) for name, number, *_ in said if name == "GONE"] == [("GONE", waiting.number)]
    assert [one.attach for one in attached(said)] == [3]


def test_all_older_entries_are_taken_back_when_a_newer_session_is_lost() -> None:
    """A stream that is attached in a session beside its leg gives up both numbers when a newer session is lost."""
    talk = Conversation()
    stream = client(talk)
    hear(talk, entry(stream, number=None))
    [waiting] = attached(talk.said())
    older = talk.session
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    [moving] = attached(talk.said())
    talk.lose()
    talk.session = older
    said = talk.said()
    assert [(name, number) for name, number, *_ in said] == [("GONE", waiting.number), ("GONE", 1), ("ATTACH", 0)]
    [again] = attached(said)
    assert (waiting.attach, moving.attach, again.attach) == (1, 2, 3)


def test_a_linger_or_a_missing_confirmation_waits_while_the_stream_is_detached() -> None:
    """What was written before a close is still sent if the peer comes back later than the linger time."""
    talk = Conversation()
    stream = client(talk)
    talk.table.write(stream, b"last words")
    talk.table.close(stream, talk.now)
    lose(talk)
    talk.wait(100)
    hear(talk, entry(stream))
    assert [payload for name, _, _, payload in talk.said() if name == "DATA"] == [b"last words"]
    talk = Conversation(offer=True)
    unconfirmed = host(talk)
    talk.hear(frame(frames.GONE, 2))
    talk.wait(31)
    assert not unconfirmed.ended
    hear(talk, entry(unconfirmed))
    talk.wait(100)
    assert not unconfirmed.ended


def test_a_detached_stream_keeps_what_its_program_writes_up_to_the_bound() -> None:
    """Without a session, a writer is paused at the usual number of bytes, and continues once they can leave."""
    talk = Conversation(limits=Limits(unsent=10))
    stream = client(talk)
    talk.lose()
    assert talk.table.write(stream, b"12345")
    assert not talk.table.write(stream, b"67890")
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    talk.said()
    talk.events()
    hear(talk, entry(stream))
    assert [payload for name, _, _, payload in talk.said() if name == "DATA"] == [b"1234567890"]
    assert talk.events() == [events.WritingResumed(stream)]


def test_a_stream_that_is_closed_before_it_is_open_keeps_the_deadline_of_its_open() -> None:
    """A program that writes and closes before the open waits for a host no longer than one that stays."""
    talk = Conversation(welcome=None)
    stream = talk.table.open(SERVICE, UUID, talk.now, secret=bytes(32))
    talk.table.write(stream, b"hello")
    talk.table.close(stream, talk.now)
    talk.wait(30.1)
    assert stream.ended


def test_predecessors_are_named_in_every_hello() -> None:
    """A successor shows its predecessors' secrets in every HELLO, so that peers do not wait in vain."""
    endpoint = Endpoint(bytes(32), predecessors=[b"\x01" * 32])
    for _ in range(2):
        session = endpoint.connect()
        message = b"".join(endpoint.take_batch(session, 1 << 16, 0.0))
        [(_, _, _, _, payload)] = frames.decode(message)
        assert json.loads(bytes(payload))["predecessors"] == ["01" * 32]
        endpoint.disconnect(session, 0.0)


def test_what_a_session_carried_is_known() -> None:
    """Bytes that arrived in order, or were acknowledged, count as carried, also after the end of their stream."""
    talk = Conversation()
    stream = client(talk)
    carried = talk.table.resumption
    talk.table.write(stream, b"0123456789")
    talk.said()
    assert carried.carried == 0
    talk.hear(frames.ack_frame(stream.number, 4, 65536, fin=False))
    talk.hear(frame(frames.DATA, stream.number, 0, b"hello"))
    assert carried.carried == 9
    lose(talk)
    assert carried.carried == 9
    talk.table.reset(stream, "cancelled")
    assert carried.carried == 9
