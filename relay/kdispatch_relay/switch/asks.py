"""What an agent is to be asked: halves of other agents that wait for one of this agent's."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.messages import Attach

if TYPE_CHECKING:
    from kdispatch_relay.switch.attachments import Half

__all__ = ["Asks"]


class Asks:
    """A source of a session's outbox: frames are made when their turn comes, of the halves that then still wait.

    So strangers, who can make a relay ask anybody, cost the one who is asked a fair share of its session, and the
    relay a reference each.
    """

    __slots__ = ("_batch", "_halves", "deficit", "queued")

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._halves: dict[Half, None] | None = None  # made at first use
        self.deficit = 0
        self.queued = False

    def __len__(self) -> int:
        return len(self._halves or ())

    def add(self, half: Half) -> None:
        """Ask about this one."""
        if self._halves is None:
            self._halves = {}
        self._halves[half] = None

    def discard(self, half: Half) -> None:
        """It need not be asked about any more."""
        if self._halves is not None:
            self._halves.pop(half, None)

    def ready(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self._halves)

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:  # noqa: ARG002 - an outbox's source
        """Append the next question."""
        halves = self._halves
        if not halves:
            return 0
        entries = []
        for half in list(itertools.islice(halves, self._batch)):
            del halves[half]
            entries.append(replace(half.entry, peer=half.session.process, number=None))
        question = frames.frame(frames.ATTACH, payload=Attach.of(entries).encode())
        parts.append(question)
        return len(question)
