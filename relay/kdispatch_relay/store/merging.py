"""Merges hosting and connecting: for an hour, one row counts what the same actor does to the same service.

Anyone can host and connect as often as they like. They choose the ids of their agents and hosts, and may have many
addresses and tokens. So rows do not distinguish ids that an agent chooses, and the number of rows in an hour is bounded
for an account and for a source over all accounts. Without a token it is also bounded for a source at one account. Above
a bound, events are counted together, and the row says less. Clients without a token have rows of their own, so they
take none from holders of the owner's tokens. Sans-I/O: an event contains its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from kdispatch_relay.sources import group_of
from kdispatch_relay.store.records import AuditRecord

__all__ = ["ROUTINE", "WINDOW", "Merger", "Row"]

#: Actions that repeat as long as a service is used. Actions by a host's own token are merged, too.
ROUTINE: Final = frozenset({"host", "connect"})
WINDOW: Final = 3600  #: seconds; events of one hour of the clock are merged

_OF_TOKENS: Final = 200  # rows of an account's tokens in an hour: twice its quota of services
_OF_ANYBODY: Final = 100  # rows of an account in an hour, for those without a token
_OF_SOURCE: Final = 20  # of these, for one source
_BY_TOKENS: Final = 2_000  # rows of one source over all accounts in an hour, by tokens: ten accounts' worth
_BY_ANYBODY: Final = 500  # and without a token
_MOST: Final = 20_000  # detailed rows in an hour, of some 700 bytes; twice as many together with the others

_ANYBODY: Final = "anybody"
_SEVERAL: Final = "several"  # the actor of a row that counts several actors


@dataclass(slots=True, eq=False)
class Row:
    """One row of the audit: an event, how often it happened, and until when. ``id`` is 0 until it is stored."""

    handle: str
    actor: str
    action: str
    subject: str
    source: str
    detail: Mapping[str, Any]
    at: int
    last: int
    count: int = 1
    id: int = 0

    @classmethod
    def of(cls, handle: str, event: AuditRecord) -> Self:
        """The row of one event."""
        return cls(handle, event.actor, event.action, event.subject, event.source, event.detail, event.at, event.at)

    def again(self, event: AuditRecord, source: str) -> None:
        """Count one more event; what differs between the events is dropped from the row."""
        self.count += 1
        self.last = max(self.last, event.at)
        if self.source != event.source:
            self.source = source
        if self.actor != event.actor:
            self.actor = _SEVERAL
        if self.detail != event.detail:
            self.detail = {name: value for name, value in self.detail.items() if event.detail.get(name) == value}


class Merger:
    """The rows of the current hour."""

    def __init__(self) -> None:
        self._hour = 0
        self._rows: dict[Hashable, Row] = {}
        self._counts: Counter[Hashable] = Counter()  # rows, by the bound that they count in

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, handle: str, event: AuditRecord) -> Row | None:
        """The row of this event in the account of ``handle``; the event is counted in it.

        ``None`` if this hour has more active accounts than are remembered.
        """
        if event.at // WINDOW > self._hour:
            self._hour = event.at // WINDOW
            self._rows.clear()
            self._counts.clear()
        group = group_of(event.source)
        for key, source in self._keys(handle, event, group):
            if (row := self._rows.get(key)) is not None:
                row.again(event, source)
                return row
            if self._has_place(handle, event, group, key):
                break
        else:
            return None
        row = Row.of(handle, event)
        if len(key) < _WHOLE:  # it stands for more than this event
            row.actor = _ANYBODY if event.actor == _ANYBODY else _SEVERAL
            row.subject, row.source, row.detail = handle, source, {}
        self._rows[key] = row
        return row

    @staticmethod
    def _keys(handle: str, event: AuditRecord, group: str) -> tuple[tuple[tuple[str, ...], str], ...]:
        """The keys under which a row may be found, the most detailed first, each with the source that the row shows."""
        # The id of a host's own token is the host's choice.
        actor = event.actor.partition(" ")[0] if event.actor.startswith("hst ") else event.actor
        who = _ANYBODY if event.actor == _ANYBODY else _SEVERAL
        return (
            ((handle, event.action, who, group, event.subject, actor), group),
            ((handle, event.action, who, group), group),
            ((handle, event.action, who), ""),
        )

    def _has_place(self, handle: str, event: AuditRecord, group: str, key: tuple[str, ...]) -> bool:
        """Whether one more row of this kind is allowed; if so, counts it."""
        if len(key) < _WHOLE - 2:
            return len(self._rows) < 2 * _MOST
        public = event.actor == _ANYBODY
        limits: dict[Hashable, int] = {
            "rows": _MOST,
            (handle, public): _OF_ANYBODY if public else _OF_TOKENS,
            ("at all", group, public): _BY_ANYBODY if public else _BY_TOKENS,
        }
        if public and len(key) == _WHOLE:
            limits[handle, group] = _OF_SOURCE
        if any(self._counts[kind] >= most for kind, most in limits.items()):
            return False
        self._counts.update(limits.keys())
        return True


_WHOLE: Final = 6  # parts of the key of a detailed row
