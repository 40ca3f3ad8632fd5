"""What a program said before an end of its own making arrives, and then the reset does."""

from __future__ import annotations

from kdispatch_protocol import events, frames
from kdispatch_protocol.frames import frame
from tests.core.conversation import Conversation, reset_of


def test_a_reset_waits_for_last_words() -> None:
    """What was written before an end of the program's own making is acknowledged first, and then the reset goes out."""
    talk = Conversation()
    stream = talk.client()
    talk.table.write(stream, b"last words")
    assert talk.names() == ["DATA"]
    talk.table.farewells.begin(stream, "cancelled", "", talk.now)
    talk.hear(frames.ack_frame(1, 9, 1000, fin=False))
    talk.hear(frame(frames.DATA, 1, 0, b"for nobody"))
    talk.hear(frame(frames.FIN, 1, 10))
    assert talk.said() == [] and talk.events() == []
    talk.hear(frames.ack_frame(1, 10, 1000, fin=False))
    assert [reset_of(said) for said in talk.said()] == ["cancelled"]
    assert isinstance(talk.events()[-1], events.StreamWasReset)


def test_last_words_that_nobody_takes_do_not_wait_for_ever() -> None:
    """A peer that takes last words, however slowly, gets them all; one that takes none for a time is reset."""
    talk = Conversation()
    stream = talk.client()
    talk.table.write(stream, b"last words")
    talk.names()
    talk.table.farewells.begin(stream, "cancelled", "", talk.now)
    for received in range(1, 5):
        talk.wait(talk.table.limits.last_words - 0.1)
        talk.hear(frames.ack_frame(1, received, 1000, fin=False))
    talk.wait(talk.table.limits.last_words - 0.1)
    assert not stream.ended
    talk.wait(talk.table.limits.last_words)
    talk.wait(talk.table.limits.last_words)
    assert [reset_of(said) for said in talk.said()] == ["cancelled"]


def test_a_program_that_said_nothing_is_reset_at_once() -> None:
    """Where the peer has everything, or there is nothing to have, a reset waits for nothing."""
    for said in (b"", b"x"):
        talk = Conversation()
        stream = talk.client()
        talk.table.write(stream, said)
        talk.names()
        talk.hear(frames.ack_frame(1, len(said), 1000, fin=False))
        talk.table.farewells.begin(stream, "cancelled", "", talk.now)
        assert [reset_of(frame_) for frame_ in talk.said()] == ["cancelled"]
