"""Rate limits for one source or one token, and the limits on the number of sessions."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Self

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_digest
from kdispatch_relay.problems import TryLaterError
from kdispatch_relay.rates import Rates, Recent, whole_seconds
from kdispatch_relay.settings import RelaySettings

__all__ = ["CAPS", "RATES", "Limiter", "Rate", "SessionLimits", "Shares"]

_log = logging.getLogger("kdispatch.relay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate limit on one kind of event. ``kind`` is its name in the relay's state."""

    kind: str
    setting: str  # the setting that gives the number
    per: str  # what has a bucket: "source" or "token"
    seconds: int  # the period of that number
    at_once: float = 1.0  # the burst, as a multiple of the number
    less: int = 0  # and this many less in the burst
    told: str  # the message of the refusal


# fmt: off
#: In the order of the settings.
RATES: Final = (
    Rate(kind="sign_ups", setting="limit_sign_ups", per="source", seconds=3600,
         told="Too many handles were taken from your address"),
    # With this, the tenth within a minute is the first that is refused unread.
    Rate(kind="bad_tokens", setting="limit_bad_tokens", per="source", seconds=60, less=1,
         told="Too many invalid tokens came from your address"),
    Rate(kind="requests", setting="limit_requests", per="source", seconds=1, at_once=4.0,
         told="Too many requests came from your address"),
    Rate(kind="token_requests", setting="limit_requests", per="token", seconds=1, at_once=4.0,
         told="Too many requests came with this token"),
    Rate(kind="failed_opens", setting="limit_failed_opens", per="source", seconds=1, at_once=5.0,
         told="Too many opens and offers from your address failed"),
    # 2,000 sessions that ping once in 5 s send 400 a second. The burst is that of two sessions: ten sessions that flood
    # are found within 40 ms of the relay's time.
    Rate(kind="idle_frames", setting="limit_idle_frames", per="source", seconds=1, at_once=5.0,
         told="Too many frames without effect came from this session or its address"),
    # Twice what a busy agent opens. No relay opens this many a second: an open that leads to a stream costs relay and
    # agents 1.8 ms. Above it, the relay reads the sessions more slowly.
    Rate(kind="asking", setting="limit_asking", per="source", seconds=1, at_once=0.2,
         told="This session sent too many requests for too long"),
    # All sessions of a source can come back at once, as after a restart of the relay, and once more.
    Rate(kind="upgrades", setting="limit_source_sessions", per="source", seconds=10, at_once=2.0,
         told="Too many sessions began from your address"),
)
# fmt: on

#: Limits on numbers at one time, by the name of their counter in the relay's state, with the setting of each.
CAPS: Final[Mapping[str, str]] = {"source_sessions": "limit_source_sessions", "sessions": "limit_sessions"}

_KEY: Final = 16  # bytes of a token's digest: enough to tell tokens apart
_ROOM_AGAIN: Final = 0.9  # part of all sessions: below it, the relay is no longer full
_FULL: Final = 10  # seconds for Retry-After: when there is room again is not known


@dataclass(frozen=True, slots=True)
class Shares:
    """Percentages of an account's streams: for its public services, and for one source of what the others leave there.

    0 means no limit, as in the settings.
    """

    public: int = 0
    source: int = 0

    def public_of(self, streams: int) -> int:
        """How many of ``streams`` public services may have: the percentage, but at least one if there is one."""
        return max(min(streams, 1), streams * self.public // 100) if self.public else streams

    @property
    def source_part(self) -> float:
        """The part that one source may have of what the others leave."""
        return self.source / 100 if self.source else 1.0


class Limiter:
    """The limits of one relay. ``accepted`` has digests of recently valid tokens: those are always looked up.

    A source is a group of :func:`~kdispatch_relay.sources.group_of`; an empty one is unknown, and not limited.
    ``sessions`` replaces the setting for all sessions. ``limited`` counts refusals by kind.
    """

    def __init__(
        self, settings: RelaySettings, accepted: Recent[bytes], clock: Callable[[], float], sessions: int | None = None
    ) -> None:
        self.limited: Counter[str] = Counter()
        self._accepted = accepted
        self._clock = clock
        self._rates: Mapping[str, Rates[object]] = {
            rate.kind: made for rate in RATES if (made := _made(rate, getattr(settings, rate.setting))) is not None
        }
        self._told = {rate.kind: rate.told for rate in RATES}
        self._most = settings.limit_sessions if sessions is None else sessions
        self._refused = 0  # sessions refused since the limit was logged
        self._most_of_source = settings.limit_source_sessions
        self.shares: Final = Shares(settings.limit_public_streams, settings.limit_source_streams)
        self._sessions = 0
        self._sessions_of: dict[str, int] = {}

    def take(self, kind: str, key: object) -> None:
        """Count one more event of its kind; raises ``rate_limited`` if there are too many."""
        rates = self._rates.get(kind)
        wait = rates.take(key, self._clock()) if rates is not None and key else 0.0
        if wait:
            raise self._too_many(kind, wait)

    def give_back(self, kind: str, key: object, count: float = 1.0) -> None:
        """Give back ``count`` events that do not count after all."""
        rates = self._rates.get(kind)
        if rates is not None and key:
            rates.give_back(key, count)

    def request(self, source: str, token: str | None) -> None:
        """Count a request of the REST API; raises ``rate_limited``."""
        self.take("requests", source)
        if token is not None:
            self.take("token_requests", token_digest(token)[:_KEY])

    @contextmanager
    def authenticating(self, source: str, token: str | None) -> Iterator[None]:
        """Look up ``token`` within the block. If too many tokens were bad, raises ``rate_limited`` instead.

        A ``token_refused`` from the block counts as bad. A revoked token does not: it was known once, and is no guess.
        """
        rates = self._rates.get("bad_tokens")
        if rates is None or token is None or not source:
            yield
            return
        wait = rates.wait(source, self._clock())
        digest = token_digest(token)
        if wait and digest not in self._accepted:
            raise self._too_many("bad_tokens", wait)
        try:
            yield
        except KdispatchError as error:
            if error.code in {"token_refused", "revoked"}:
                self._accepted.discard(digest)
            if error.code == "token_refused":
                # Other look-ups may have failed meanwhile.
                self.take("bad_tokens", source)
            raise

    def begin_session(self, source: str) -> None:
        """Count one more session; raises ``busy``, or ``rate_limited`` if its source begins too many."""
        if self._most and self._sessions >= self._most:
            self.limited["sessions"] += 1
            if not self._refused:
                _log.warning("The relay has %d sessions, its limit: it refuses further ones with 503.", self._most)
            self._refused += 1
            raise TryLaterError("busy", "The relay has reached its limit of sessions.", _FULL)
        of_source = self._sessions_of.get(source, 0)
        if source and self._most_of_source and of_source >= self._most_of_source:
            self.limited["source_sessions"] += 1
            raise TryLaterError("busy", "Your address has reached its limit of sessions.", _FULL)
        self.take("upgrades", source)
        self._sessions += 1
        self._sessions_of[source] = of_source + 1

    def end_session(self, source: str) -> None:
        """Count one session less."""
        self._sessions -= 1
        if self._refused and self._sessions < self._most * _ROOM_AGAIN:
            _log.warning("The relay accepts sessions again: %d were refused.", self._refused)
            self._refused = 0
        left = self._sessions_of[source] - 1
        if left:
            self._sessions_of[source] = left
        else:
            del self._sessions_of[source]

    def may_fail(self, source: str, now: float) -> bool:
        """Whether one more open of ``source`` may fail."""
        rates = self._rates.get("failed_opens")
        if rates is None or not source or not rates.wait(source, now):
            return True
        self.limited["failed_opens"] += 1
        return False

    def failed(self, source: str, now: float) -> bool:
        """Count one more failed open; returns whether the limit allowed it."""
        rates = self._rates.get("failed_opens")
        return rates is None or not source or not rates.take(source, now)

    def spend(self, kind: str, source: str, count: float, now: float) -> float:
        """See :meth:`~kdispatch_relay.switch.effort.Source.spend`."""
        rates = self._rates.get(kind)
        return 0.0 if rates is None or not source else rates.spend(source, count, now)

    def exceeded(self, kind: str, count: float) -> None:
        """See :meth:`~kdispatch_relay.switch.effort.Source.exceeded`."""
        self.limited[kind] += math.ceil(count)

    def _too_many(self, kind: str, wait: float) -> TryLaterError:
        self.limited[kind] += 1
        seconds = whole_seconds(wait)
        return TryLaterError("rate_limited", f"{self._told[kind]}; try again in {seconds} s.", seconds)


class SessionLimits:
    """One session. It counts until the end of the block or, after :meth:`kept`, until :meth:`end`.

    Raises ``busy`` or ``rate_limited`` if there is no place for it.

    For the switch it is the bucket of failures that all sessions of a source share. Without a ``limiter`` nothing is
    limited.
    """

    __slots__ = ("_kept", "_limiter", "source")

    def __init__(self, limiter: Limiter | None, source: str) -> None:
        self._limiter = limiter
        self.source: Final = source
        self._kept = False
        if limiter is not None:
            limiter.begin_session(source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.end()

    def kept(self) -> Self:
        """This object, which now counts until the caller calls :meth:`end`."""
        self._kept = True
        return self

    def end(self) -> None:
        """The session is over."""
        if self._limiter is not None:
            self._limiter.end_session(self.source)

    @property
    def shares(self) -> Shares:
        """See :class:`Shares`."""
        return Shares() if self._limiter is None else self._limiter.shares

    def peek(self, now: float) -> bool:
        """Whether one more may fail."""
        return self._limiter is None or self._limiter.may_fail(self.source, now)

    def take(self, now: float) -> bool:
        """Count one more failure; returns whether the limit allowed it."""
        return self._limiter is None or self._limiter.failed(self.source, now)

    def spend(self, kind: str, count: float, now: float) -> float:
        """See :meth:`~kdispatch_relay.switch.effort.Source.spend`."""
        return 0.0 if self._limiter is None else self._limiter.spend(kind, self.source, count, now)

    def exceeded(self, kind: str, count: float) -> None:
        """See :meth:`~kdispatch_relay.switch.effort.Source.exceeded`."""
        if self._limiter is not None:
            self._limiter.exceeded(kind, count)

    def give_back(self, kind: str, count: float) -> None:
        """Give back ``count`` events that do not count after all."""
        if self._limiter is not None:
            self._limiter.give_back(kind, self.source, count)

    def authenticating(self, token: str | None) -> AbstractContextManager[None]:
        """See :meth:`Limiter.authenticating`."""
        return nullcontext() if self._limiter is None else self._limiter.authenticating(self.source, token)


def _made(rate: Rate, count: int) -> Rates[object] | None:
    return Rates(count / rate.seconds, max(1.0, count * rate.at_once - rate.less)) if count else None
