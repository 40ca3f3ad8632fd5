"""ATTACH at the relay: halves wait and are joined, and other agents cannot interfere."""

from __future__ import annotations

import pytest

from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import process_id
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Hello, Reset
from kdispatch_relay.switch.intents import AskAttach, RefusedAttach
from tests.core.agents import SERVICE, Peer, Relay, Said, code_of, connected, revoke_service
from tests.core.intents import cuts_of, questions_of, taken

_UUID = "77" * 16


def entry(me: Peer, role: str, peer: str, number: int, **more: object) -> AttachEntry:
    """An agent's entry for the stream; the proofs are for the other end, not for the relay."""
    fields: dict[str, object] = {"received": 10, "limit": 1000, "attach": 1, "proof": f"{me.secret[0]:02x}" * 32}
    fields |= {"uuid": _UUID, "service": SERVICE, "role": role, "peer": peer, "number": number}
    return AttachEntry(**(fields | more))  # type: ignore[arg-type]


def attach(me: Peer, *entries: AttachEntry, answer: bool = True) -> None:
    me.say(frame(frames.ATTACH, payload=Attach.of(list(entries), "t").encode()))
    if answer:
        me.relay.answer()


def told(said: Said) -> list[tuple[str, str, int | None]]:
    """Role, peer and number of each entry that an agent was sent."""
    entries = [e for name, _, _, payload in said if name == "ATTACH" for e in Attach.parse(payload).entries()]
    return [(e.role, e.peer, e.number) for e in entries]


def joined(relay: Relay, **more: object) -> tuple[Peer, Peer]:
    """A client and a host with a rejoined stream: number 5 at the client, 7 at the host."""
    host, client = relay.agent(1), relay.agent(2)
    attach(client, entry(client, "client", host.process, 5))
    attach(host, entry(host, "host", client.process, 7, **more))
    host.hear()
    client.hear()
    return client, host


def test_two_halves_become_a_stream() -> None:
    """Each end gets the other's entry with its own number; then data passes from the receiver's offset on."""
    relay = Relay()
    host, client = relay.agent(1), relay.agent(2)
    attach(client, entry(client, "client", host.process, 5, received=3))
    assert told(host.hear()) == [("client", client.process, None)]  # the relay asks it
    assert client.hear() == []
    attach(host, entry(host, "host", client.process, 7))
    assert told(host.hear()) == [("client", client.process, 7)]
    assert told(client.hear()) == [("host", host.process, 5)]
    assert len(relay.switch.attachments) == 0
    client.say(frame(frames.DATA, 5, 10, b"abc"))
    assert host.hear() == [("DATA", 7, 10, b"abc")]
    host.say(frame(frames.DATA, 7, 3, b"x"))
    assert client.hear() == [("DATA", 5, 3, b"x")]


def test_a_half_waits_as_long_as_a_grace() -> None:
    """A half whose peer comes 119 s later is still there: the relay does not end a grace early."""
    relay = Relay()
    client = relay.agent(2)
    attach(client, entry(client, "client", process_id(bytes([1]) * 32), 5))
    for _ in range(119):
        relay.wait(1.0)
    host = relay.agent(1)
    attach(host, entry(host, "host", client.process, 7))
    assert told(host.hear())[-1:] == [("client", client.process, 7)]
    assert told(client.hear()) == [("host", host.process, 5)]


def test_nobody_is_asked_before_it_is_here() -> None:
    """A half waits for a process without a session, and that process is asked directly after its WELCOME."""
    relay = Relay()
    client = relay.agent(2)
    attach(client, entry(client, "client", process_id(bytes([1]) * 32), 5))
    assert len(relay.switch.attachments) == 1
    host = Peer(relay, 1)
    host.say(frame(frames.HELLO, payload=Hello(versions=[1], secret=host.secret.hex()).encode()))
    said = host.hear()
    assert [name for name, *_ in said] == ["WELCOME", "ATTACH"]
    assert told(said) == [("client", client.process, None)]


def test_data_under_a_half_or_a_dead_number_goes_nowhere() -> None:
    """Before the join nothing passes; DATA for an unknown number is answered with GONE, 10 times a second at most."""
    relay = Relay()
    client = relay.agent(2)
    attach(client, entry(client, "client", "11" * 16, 5))
    client.say(frame(frames.DATA, 5, 0, b"x"))
    assert client.hear() == []
    for _ in range(30):
        client.say(frame(frames.DATA, 3, 0, b"x"))
    assert client.names() == ["GONE"] * 10


def test_a_half_of_somebody_else_joins_nothing() -> None:
    """A half that names a process whose own half names another waits, is refused, and displaces no other half."""
    relay = Relay()
    client, thief = relay.agent(2), relay.agent(3)
    attach(client, entry(client, "client", process_id(bytes([1]) * 32), 5))
    attach(thief, entry(thief, "client", process_id(bytes([1]) * 32), 5))
    assert len(relay.switch.attachments) == 2  # next to the true owner's, not in its place
    host = relay.agent(1)
    attach(host, entry(host, "host", client.process, 7))
    assert told(client.hear()) == [("host", host.process, 5)]
    assert thief.hear() == []
    refusal = Reset(code="unknown_stream", uuid=_UUID, process=thief.process)
    host.say(frame(frames.RESET, payload=refusal.encode()))
    assert code_of(thief.hear()) == "unknown_stream"
    [report] = taken(relay.switch, RefusedAttach)
    assert (report.agent, report.peer, report.code) == (thief.process, host.process, "unknown_stream")
    client.say(frame(frames.DATA, 5, 10, b"mine"))
    assert ("DATA", 7, 10, b"mine") in host.hear()


def test_a_thief_that_plays_the_other_role_joins_nothing() -> None:
    """A claim to be the host of a client's stream fails: the client's half names another process."""
    relay = Relay()
    client, thief = relay.agent(2), relay.agent(3)
    attach(client, entry(client, "client", "11" * 16, 5))
    attach(thief, entry(thief, "host", client.process, 5))
    assert told(client.hear()) == [("host", thief.process, None)]  # the client knows that its host is another process
    assert thief.hear() == []
    assert len(relay.switch.attachments) == 2


def test_only_the_named_process_may_refuse() -> None:
    """RESET by uuid counts only from the process that the half waits for."""
    relay = Relay()
    client, host, other = relay.agent(2), relay.agent(1), relay.agent(3)
    attach(client, entry(client, "client", host.process, 5))
    refusal = frame(frames.RESET, payload=Reset(code="closed", uuid=_UUID, process=client.process).encode())
    other.say(refusal)
    assert client.hear() == []
    host.say(refusal)
    assert code_of(client.hear()) == "closed"


def test_a_lost_session_takes_its_halves_along() -> None:
    """A half belongs to its session: the next session's half takes its place, and the peer is asked again."""
    relay = Relay()
    client, host = relay.agent(2), relay.agent(1)
    attach(client, entry(client, "client", host.process, 5))
    client.lose()
    assert len(relay.switch.attachments) == 0
    again = relay.agent(2)
    attach(again, entry(again, "client", host.process, 1, attach=2))
    assert told(host.hear())[-1] == ("client", client.process, None)


def test_either_lost_leg_is_told_by_gone() -> None:
    """When either leg is lost after a join, the other end gets GONE."""
    for first in (True, False):
        relay = Relay()
        client, host = joined(relay)
        (client if first else host).lose()
        other, number = (host, 7) if first else (client, 5)
        assert other.hear() == [("GONE", number, 0, b"")]
        assert not other.session.legs


def test_a_half_that_is_given_up() -> None:
    """RESET with a half's number drops it, also if it was asked for; the store's late answer changes nothing."""
    relay = Relay()
    client, host = relay.agent(2), relay.agent(1)
    attach(client, entry(client, "client", host.process, 5), answer=False)
    client.reset(5)
    relay.answer()
    assert len(relay.switch.attachments) == 0
    attach(client, entry(client, "client", host.process, 7))
    client.reset(7)
    assert len(relay.switch.attachments) == 0
    assert not client.session.halves


def test_a_half_that_is_gone() -> None:
    """GONE takes an entry back without telling others: its stream goes on under another number."""
    relay = Relay()
    host, client = relay.agent(1), relay.agent(2)
    attach(client, entry(client, "client", host.process, 5))
    host.hear()
    client.say(frame(frames.GONE, 5))
    assert not client.session.halves and len(relay.switch.attachments) == 0
    attach(host, entry(host, "host", client.process, 7))
    assert client.names() == ["ATTACH"]  # it is asked, and not joined
    assert host.hear() == []


def test_who_may_not_any_more_is_told() -> None:
    """The store is asked once for each service and role of a batch; if it refuses, those streams end."""
    relay = Relay()
    client = relay.agent(2)
    two = [entry(client, "client", "11" * 16, 5), entry(client, "client", "12" * 16, 7)]
    attach(client, *two, entry(client, "host", "13" * 16, 9), answer=False)
    questions = questions_of(relay.switch)
    asked = [question for question in questions if isinstance(question, AskAttach)]
    assert [(q.service, q.role, q.token, len(q.halves)) for q in asked] == [
        (SERVICE, "client", "t", 2), (SERVICE, "host", "t", 1)
    ]  # fmt: skip
    relay.switch.attachments.refused(asked[0], "revoked", "no", relay.now)
    assert [(n, s) for n, s, *_ in client.hear()] == [("RESET", 5), ("RESET", 7)]


def test_what_is_open_to_everybody_is_not_asked_for() -> None:
    """A client of a public service with a live host attaches without a look-up; a host never does."""
    relay = Relay()
    host, client = relay.agent(1, offers=True), relay.agent(2)
    attach(client, entry(client, "client", host.process, 5), answer=False)
    assert told(host.hear()) == [("client", client.process, None)]
    attach(host, entry(host, "host", client.process, 7), answer=False)
    assert told(client.hear()) == []
    relay.answer()
    assert told(client.hear()) == [("host", host.process, 5)]


def test_a_stream_that_is_given_up_while_its_attach_is_looked_up() -> None:
    """If an end gives up its attached stream, or may not have it, it is asked for the waiting end what became of it."""
    for allowed in (True, False):
        relay = Relay()
        client, host = relay.agent(2), relay.agent(1)
        attach(host, entry(host, "host", client.process, 7))
        client.hear()  # it is asked, and attaches already
        attach(client, entry(client, "client", host.process, 5), answer=False)
        if allowed:
            client.reset(5)
        relay.answer(known=allowed)
        assert told(client.hear()) == [("host", host.process, None)]


def test_a_stream_that_is_attached_again_is_one_route() -> None:
    """Once both ends have joined under new numbers, the earlier ones end silently, and nothing counts twice."""
    relay = Relay()
    client, host = joined(relay)
    for number in range(9, 99, 2):
        attach(host, entry(host, "host", client.process, number))
        attach(client, entry(client, "client", host.process, number))
        assert (len(client.session.legs), len(host.session.legs)) == (1, 1)
        assert client.session.streams_opened == 1
    assert "GONE" not in client.names() + host.names()


def test_a_half_whose_look_up_comes_behind_the_join_does_not_wait() -> None:
    """An older half whose look-up ends after a later half was joined does not wait, because it would get no answer."""
    relay = Relay()
    host, client = relay.agent(1), relay.agent(2)
    attach(client, entry(client, "client", host.process, 5), answer=False)
    [late] = questions_of(relay.switch)
    attach(client, entry(client, "client", host.process, 9, attach=2))
    attach(host, entry(host, "host", client.process, 7))
    assert told(client.hear()) == [("host", host.process, 9)]
    assert isinstance(late, AskAttach)
    relay.switch.attachments.allowed(late, relay.now)
    assert len(relay.switch.attachments) == 0
    assert not client.session.halves
    host.hear()
    client.say(frame(frames.DATA, 9, 10, b"abc"))
    assert host.hear() == [("DATA", 7, 10, b"abc")]


def test_ends_of_different_services_are_not_joined() -> None:
    """Halves that name different services are not joined: each end was authorised for its own service only."""
    relay = Relay()
    client, host = relay.agent(2), relay.agent(1)
    attach(client, entry(client, "client", host.process, 5))
    attach(host, entry(host, "host", client.process, 7, service="ann/other"))
    assert not client.session.legs
    assert len(relay.switch.attachments) == 2


def test_a_deleted_service_ends_its_halves() -> None:
    """When its service is deleted, a waiting half is reset with `revoked`."""
    relay = Relay()
    client = relay.agent(2)
    attach(client, entry(client, "client", "11" * 16, 5))
    revoke_service(relay.switch, SERVICE)
    assert code_of(client.hear()) == "revoked"
    assert len(relay.switch.attachments) == 0


def test_a_successor_speaks_for_the_dead() -> None:
    """A process that proves to replace another ends that one's session and its waits; without proof it cannot."""
    relay = Relay()
    client, ghost = relay.agent(2), relay.agent(1)
    attach(client, entry(client, "client", ghost.process, 5))
    liar = Peer(relay, 4)
    liar.say(frame(frames.HELLO, payload=_hello(liar, "ab" * 32)))
    assert client.hear() == []
    successor = Peer(relay, 3)
    successor.say(frame(frames.HELLO, payload=_hello(successor, ghost.secret.hex())))
    assert code_of(client.hear()) == "peer_restarted"
    [cut] = cuts_of(relay.switch)
    assert (cut.session, cut.code) == (ghost.session, "superseded")
    ghost.lose()
    attach(client, entry(client, "client", ghost.process, 7))
    assert code_of(client.hear()) == "peer_restarted"
    successor.lose()
    attach(client, entry(client, "client", ghost.process, 9))
    assert client.hear() == []


def _hello(peer: Peer, predecessor: str) -> bytes:
    return Hello(versions=[1], secret=peer.secret.hex(), predecessors=[predecessor]).encode()


def test_a_hello_that_claims_another_process_is_nobody() -> None:
    """A process id is derived from its secret: without the secret, no session can claim the id."""
    relay = Relay()
    owner = relay.agent(1)
    thief = Peer(relay, 9)
    thief.say(frame(frames.HELLO, payload=Hello(versions=[1], secret=(owner.process * 2)).encode()))
    assert thief.session.process != owner.process
    assert relay.switch.by_process[owner.process] is owner.session
    assert cuts_of(relay.switch) == []


def test_numbers_and_counts() -> None:
    """A number is new and the agent's own; above the limit of streams in a session, a half is `busy`."""
    relay = Relay(Limits(streams_client=1, streams_host=1))
    client = relay.agent(2)
    for number in (4, 0):
        with pytest.raises((RemoteProtocolError, ValueError)):
            attach(client, entry(client, "client", "11" * 16, number))
    attach(client, *[entry(client, "client", f"{n:032x}", n) for n in (5, 7, 9)])
    assert code_of(client.hear()) == "busy"
    with pytest.raises(RemoteProtocolError):
        attach(client, entry(client, "client", "11" * 16, 7))


def test_credit_after_a_join() -> None:
    """The limits of the two entries hold on the new legs; old bytes are dropped, and one jump forward is allowed."""
    relay = Relay()
    client, host = joined(relay)
    client.say(frame(frames.DATA, 5, 0, bytes(10)))  # the host has those bytes
    client.say(frame(frames.DATA, 5, 20, b"later"))
    assert [name for name, *_ in host.hear()] == ["DATA"]
    client.say(frame(frames.DATA, 5, 30, b"a gap"))
    assert code_of(host.hear()) == "offset_mismatch"
    client, host = joined(Relay())
    client.say(frame(frames.DATA, 5, 999, b"xx"))
    assert code_of(host.hear()) == "credit_exceeded"


def test_a_host_counts_the_streams_that_it_brought_along() -> None:
    """Streams that were attached before the offer count as the host's, until they end."""
    relay = Relay()
    client, host = joined(relay)
    host.offer(9)
    [listed] = relay.switch.registry.hosts_of(SERVICE)
    assert listed.streams == 1
    client.reset(5)
    assert listed.streams == 0
    client, host = connected(relay)
    assert relay.switch.registry.hosts_of(SERVICE)[0].streams == 1
