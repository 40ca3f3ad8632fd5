"""ATTACH frames that ask one agent for its halves of streams, because other agents' halves wait for them."""

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
    """A source of a session's outbox. It builds each frame when its turn comes, from the halves that still wait then.

    So if strangers make a relay ask an agent, the asked agent loses only a fair share of its session. The relay keeps
    one reference for each question.
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
        """Ask about this half."""
        if self._halves is None:
            self._halves = {}
        self._halves[half] = None

    def discard(self, half: Half) -> None:
        """Stop asking about this half."""
        if self._halves is not None:
            self._halves.pop(half, None)

    def ready(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self._halves)

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:  # noqa: ARG002 - an outbox's source
        """Append one ATTACH frame with the next batch of halves; returns its size in bytes."""
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
