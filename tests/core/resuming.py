"""An agent's endpoint whose sessions are lost, and the peer's ATTACH entries for its streams."""

from __future__ import annotations

import dataclasses

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import proof, stream_key
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Open, Opened, Trying
from tests.core.conversation import SERVICE, WELCOME, Conversation

SECRET = bytes(range(32))
UUID = "11" * 16
HOST = "22" * 16  # the peer of a client's stream
CLIENT = "55" * 16  # the peer of a host's stream
KEY = stream_key(SECRET, HOST)
Said = list[tuple[str, int, int, bytes]]


def client(talk: Conversation, *, opened: bool = True) -> Stream:
    """A client's stream with a secret; without offers its number is 1."""
    stream = talk.table.open(SERVICE, UUID, talk.now, token="cli", secret=SECRET)
    talk.hear(frame(frames.TRYING, stream.number, payload=Trying(attempt=1, process=HOST, host="33" * 16).encode()))
    if opened:
        talk.hear(frame(frames.OPENED, stream.number, payload=Opened(limit=65536, attempt=1).encode()))
    talk.said()
    talk.events()
    return stream


def host(talk: Conversation, number: int = 2, uuid: str = UUID) -> Stream:
    """A host's stream with a key."""
    message = Open(
        service=SERVICE, uuid=uuid, limit=65536, attempt=1, process=CLIENT, key=stream_key(SECRET, HOST).hex()
    )
    talk.hear(frame(frames.OPEN, number, payload=message.encode()))
    [requested] = [e for e in talk.events() if isinstance(e, events.StreamRequested)]
    talk.table.accept(requested.stream, talk.now)
    talk.said()
    return requested.stream


def entry(stream: Stream, **changes: object) -> AttachEntry:
    """The peer's entry for the stream, with a valid proof unless it is changed."""
    role = "host" if stream.is_client else "client"
    attach = int(str(changes.get("attach", stream.peer_attach + 1)))
    said = AttachEntry(
        uuid=stream.uuid,
        service=stream.service,
        role=role,
        peer=stream.peer,
        number=stream.number or None,
        received=stream.outbound.base,
        limit=65536,
        attach=attach,
        proof=proof(KEY, stream.uuid, role, attach),
    )
    return dataclasses.replace(said, **changes)  # type: ignore[arg-type]


def hear(talk: Conversation, said: AttachEntry) -> None:
    talk.hear(frame(frames.ATTACH, payload=Attach.of([said]).encode()))


def attached(said: Said) -> list[AttachEntry]:
    """The entries of the ATTACHes among these frames."""
    return [e for name, _, _, payload in said if name == "ATTACH" for e in Attach.parse(payload).entries()]


def lose(talk: Conversation) -> Said:
    """Lose the session, if it is not lost already, and begin another; returns what the endpoint sends in it."""
    if talk.session in talk.table.sessions:
        talk.lose()
    talk.connect()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    return talk.said()


def lost_before_opened() -> tuple[Conversation, Stream]:
    """A client's stream that lost its session after its early data, before OPENED; it attaches in the next session."""
    talk = Conversation()
    stream = client(talk, opened=False)
    talk.table.write(stream, b"request")
    talk.said()
    lose(talk)
    talk.events()
    return talk, stream
