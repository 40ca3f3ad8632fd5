"""Agents without rights can do almost nothing to others by ATTACH."""

from __future__ import annotations

import tracemalloc

from kdispatch_protocol.limits import KIB, Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import process_id
from kdispatch_protocol.wire.messages import Attach, Hello, Reset
from tests.core.agents import Peer, Relay, connected
from tests.core.intents import cuts_of, questions_of
from tests.core.test_switch_attachments import entry, joined

_BATCH = 64


def _flood(stranger: Peer, victim: str, count: int, first: int = 1, *, same: bool = False, answer: bool = True) -> int:
    """This many entries that name ``victim``, of different streams or of one; returns the next number."""
    number = first
    for _ in range(count // _BATCH):
        entries = [
            entry(
                stranger, "client", victim, number + 2 * i,
                uuid="55" * 16 if same else f"{stranger.secret[0]:04x}{number + 2 * i:028x}",
            )
            for i in range(_BATCH)
        ]  # fmt: skip
        number += 2 * _BATCH
        stranger.say(frame(frames.ATTACH, payload=Attach.of(entries).encode()))
        if answer:
            stranger.relay.answer()
    return number


def test_strangers_do_not_keep_a_process_out() -> None:
    """However many halves wait for a process, its session begins, and the questions to it are built piece by piece."""
    relay = Relay()
    for number in (7, 8, 9, 10):
        _flood(relay.agent(number), process_id(bytes([1]) * 32), 5056)
    host = Peer(relay, 1)
    host.say(frame(frames.HELLO, payload=Hello(versions=[1], secret=host.secret.hex()).encode()))
    relay.switch.take_touched()
    assert cuts_of(relay.switch) == []
    assert host.session.outbox.control_size < KIB
    assert len(host.session.asked) == 4 * 5056


def test_what_is_not_waited_for_any_more_is_not_asked() -> None:
    """Halves that end before their turn cost the agent that would have been asked nothing."""
    relay = Relay()
    host, stranger = relay.agent(1), relay.agent(7)
    _flood(stranger, host.process, 640)
    stranger.lose()
    assert host.hear() == []
    assert len(host.session.asked) == 0


def test_a_stream_that_is_attached_for_ever_ends_its_session() -> None:
    """The same half, attached again and again, asks the other end for one entry at most, and is limited itself."""
    relay = Relay()
    host, stranger = relay.agent(1, offers=True), relay.agent(7)
    _flood(stranger, host.process, 64 * 100, same=True)
    assert len(host.session.asked) <= 1
    assert [(cut.session, cut.code) for cut in cuts_of(relay.switch)] == [(stranger.session, "rate_limited")]


def test_names_are_not_to_be_guessed_by_attach_either() -> None:
    """A refusal by the store counts like a failed OPEN: after the burst, nothing is looked up any more."""
    relay = Relay(Limits(failed_opens_burst=50, failed_opens_rate=1))
    stranger = relay.agent(7)
    asked = 0
    for number in range(1, 1001, 2):
        guess = entry(stranger, "client", "11" * 16, number, service=f"ann/s{number}", uuid=f"{number:032x}")
        stranger.say(frame(frames.ATTACH, payload=Attach.of([guess], "guess").encode()))
        asked += relay.answer(known=False)
    assert asked == 50
    codes = {Reset.parse(payload).code for name, _, _, payload in stranger.hear() if name == "RESET"}
    assert codes == {"unknown_service", "rate_limited"}


def test_look_ups_are_bounded() -> None:
    """An agent that attaches and gives up again and again reaches a limit of pending look-ups, and its session ends."""
    relay = Relay(Limits(look_ups=10))
    stranger = relay.agent(7)
    number = 1
    for _ in range(20):
        after = _flood(stranger, "11" * 16, _BATCH, number, answer=False)
        for given_up in range(number, after, 2):
            stranger.reset(given_up)
        number = after
    assert len(questions_of(relay.switch)) == 10
    assert {(cut.session, cut.code) for cut in cuts_of(relay.switch)} == {(stranger.session, "rate_limited")}


def test_a_client_can_not_have_a_host_cut() -> None:
    """A client that refuses what a host attaches costs the host its streams with that client only."""
    relay = Relay()
    client, host = connected(relay)
    for number in range(3, 9003, 2):
        host.say(frame(frames.ATTACH, payload=Attach.of([entry(host, "host", client.process, number)], "t").encode()))
        relay.answer()
        refusal = Reset(code="unknown_stream", uuid="77" * 16, process=host.process)
        client.say(frame(frames.RESET, payload=refusal.encode()))
        relay.now += 0.01
    assert cuts_of(relay.switch) == []


def test_what_a_half_costs() -> None:
    """A stranger's half costs the relay less memory than an open stream does."""
    relay = Relay()
    stranger = relay.agent(7)
    tracemalloc.start()
    _flood(stranger, "11" * 16, 1024)
    size = tracemalloc.get_traced_memory()[0] / 1024
    tracemalloc.stop()
    assert size < 2 * KIB


def test_a_host_that_attaches_a_joined_stream_for_ever_gains_nothing() -> None:
    """A host that attaches a joined stream again and again does not make its client's opens `busy`: it counts once."""
    relay = Relay()
    client, host = joined(relay)
    for number in range(9, 3009, 2):
        host.say(frame(frames.ATTACH, payload=Attach.of([entry(host, "host", client.process, number)], "t").encode()))
        relay.answer()
    assert client.session.streams_opened == 1
    assert len(host.session.legs) + len(host.session.halves) <= 2
