"""Limits the log lines that strangers can cause, by kind, by source and in total, and reports what was left out.

It is a filter of the root logger's handlers, so it sees every record from any code: the end of a session, a traceback
of asyncio, a TLS error. The first line of each kind is always written. Records of level INFO are not limited: the relay
writes them about itself, and no stranger causes them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from kdispatch_protocol.errors import CODES
from kdispatch_relay.rates import Rates

__all__ = ["PERIOD", "LogLimits", "limited_logs"]

#: Seconds between two lines that say how many were left out.
PERIOD: Final = 60.0

# Of one kind: 20 lines at once, and one in 3 s. Of one source: 10, and one in 6 s. In total: 100, and two a second. An
# operator reads the first few of each. --verbose logs each session's begin and end, so it allows fifty times as many.
_KIND: Final = (1 / 3, 20.0)
_SOURCE: Final = (1 / 6, 10.0)
_ALL: Final = (2.0, 100.0)
_VERBOSE: Final = 50.0
_KINDS: Final = 256  # kinds, and below sources, that are counted separately
_SOURCES: Final = 4096
# The parts that differ between lines of one kind: numbers, addresses, ids, and quoted text.
_VARIES: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+|'[^']*'|\"[^\"]*\"")
_COMPARED: Final = 60  # lines with the same first characters of the message, so many, are of one kind
_log = logging.getLogger("kdispatch.relay")


class _Buckets:
    """The buckets of one class of levels."""

    def __init__(self, times: float) -> None:
        self.kinds: Rates[str] = Rates(_KIND[0] * times, _KIND[1] * times, _KINDS)
        self.sources: Rates[str] = Rates(_SOURCE[0] * times, _SOURCE[1] * times, _SOURCES)
        self.all: Rates[str] = Rates(_ALL[0] * times, _ALL[1] * times, 1)


class LogLimits(logging.Filter):
    """Decides which records are written. Call :meth:`tell` each ``PERIOD`` seconds, and at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()  # the database's thread may log as well
        self._buckets = {False: _Buckets(1.0), True: _Buckets(_VERBOSE)}
        self._known: dict[str, None] = {}  # kinds with a line since the last tell()
        self._left_out = 0
        self._sources: set[str] = set()  # sources of lines that were left out
        self._told = clock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno == logging.INFO or hasattr(record, "left_out"):
            return True
        source = str(getattr(record, "source", ""))
        with self._lock:
            if self._takes(record, source):
                return True
            self._left_out += 1
            if source and len(self._sources) < _SOURCES:
                self._sources.add(source)
            return False

    def _takes(self, record: logging.LogRecord, source: str) -> bool:
        now = self._clock()
        buckets = self._buckets[record.levelno < logging.INFO]
        kind = _kind(record)
        if kind not in self._known and len(self._known) < _KINDS:
            self._known[kind] = None
            return True
        waits = (
            buckets.kinds.wait(kind, now),
            buckets.sources.wait(source, now) if source else 0.0,
            buckets.all.wait("", now),
        )
        if any(waits):
            return False
        buckets.kinds.take(kind, now)
        buckets.all.take("", now)
        if source:
            buckets.sources.take(source, now)
        return True

    def tell(self) -> None:
        """Write how many lines were left out since the last call, if there were any."""
        with self._lock:
            count, self._left_out = self._left_out, 0
            sources, self._sources = len(self._sources), set()
            now = self._clock()
            seconds, self._told = now - self._told, now
            self._known.clear()
        if count:
            of = f" of {sources:,} source{'' if sources == 1 else 's'}" if sources else ""
            lines = f"{count:,} line{'' if count == 1 else 's'}"
            fields = {"left_out": count, "sources": sources, "seconds": round(seconds)}
            _log.warning("Left out %s%s in %.0f s.", lines, of, seconds, extra=fields)


def _kind(record: logging.LogRecord) -> str:
    """What lines of one kind share: logger, level, words, code, and exception. An operator needs only a few of each."""
    words = _VARIES.sub("#", str(record.msg).partition("\n")[0][: 4 * _COMPARED])[:_COMPARED]
    code = getattr(record, "code", "")
    if isinstance(record.args, tuple) and record.args and record.args[0] in CODES:
        code = record.args[0]
    error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
    return f"{record.name} {record.levelno} {words} {code} {error}"


@asynccontextmanager
async def limited_logs() -> AsyncIterator[None]:
    """Within the block, limit what the root logger's handlers write, and report what was left out."""
    limits = LogLimits()
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(limits)
    telling = asyncio.create_task(_tell(limits), name="lines left out")
    try:
        yield
    finally:
        telling.cancel()
        limits.tell()
        for handler in handlers:
            handler.removeFilter(limits)


async def _tell(limits: LogLimits) -> None:
    while True:
        await asyncio.sleep(PERIOD)
        limits.tell()
