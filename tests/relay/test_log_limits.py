"""Strangers cannot fill a relay's log: first lines are written, and the rest is counted."""

from __future__ import annotations

import logging

import pytest

from kdispatch_relay import log_limits
from kdispatch_relay.log_limits import LogLimits


class Log:
    """What passes the limits, in simulated time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.limits = LogLimits(lambda: self.now)
        self.lines: list[str] = []
        monkeypatch.setattr(log_limits._log, "handle", self.handle)

    def handle(self, record: logging.LogRecord) -> None:
        if self.limits.filter(record):
            self.lines.append(record.getMessage())

    def write(
        self, text: str, *args: object, level: int = logging.WARNING, name: str = "kdispatch.relay", **extra: object
    ) -> None:
        record = logging.makeLogRecord({"name": name, "levelno": level, "msg": text, "args": args, **extra})
        self.handle(record)

    def ended(self, code: str, source: str) -> None:
        """The end of a session, as the gate logs it."""
        self.write("A session ended: %s: %s", code, "Why.", source=source)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def test_one_source(log: Log) -> None:
    """Of a source that causes 550 lines a second some ten are written, and one line reports the rest."""
    for number in range(5500):
        log.now = number / 550
        log.ended("protocol_error", "192.0.2.1")
    assert 10 <= len(log.lines) <= 13
    log.now = 60.0
    written = len(log.lines)
    log.limits.tell()
    assert log.lines[written:] == [f"Left out {5500 - written:,} lines of 1 source in 60 s."]
    log.now = 120.0
    log.limits.tell()
    assert len(log.lines) == written + 1  # there is nothing to report


def test_many_sources(log: Log) -> None:
    """Many sources together cause no more lines than one kind, and the whole log, may have."""
    for number in range(20_000):
        log.now = number / 2000
        log.ended("protocol_error", f"192.0.2.{number % 200}")
    assert 20 <= len(log.lines) <= 25
    log.limits.tell()
    assert "of 200 sources in 10 s." in log.lines[-1]


def test_the_first_of_each_kind_is_written(log: Log) -> None:
    """While strangers fill the log, the first line of another failure, code or program is written."""
    for _ in range(1000):
        log.ended("protocol_error", "192.0.2.1")
    before = len(log.lines)
    log.ended("slow_consumer", "192.0.2.1")
    log.write("The relay can't write the database: disk full.", source="")
    log.write("Task exception was never retrieved", level=logging.ERROR, name="asyncio")
    log.write("A look-up failed.", level=logging.ERROR, exc_info=(KeyError, KeyError("x"), None))
    log.write("A look-up failed.", level=logging.ERROR, exc_info=(ValueError, ValueError("x"), None))
    assert len(log.lines) == before + 5


def test_what_varies_is_one_kind(log: Log) -> None:
    """Lines that differ only in addresses, numbers and names are of one kind, also those of asyncio."""
    for number in range(1000):
        log.write(
            f"Fatal error on transport <T {number:#x} peer='10.0.0.{number}'>", level=logging.ERROR, name="asyncio"
        )
    assert len(log.lines) <= 21


def test_kinds_without_end(log: Log) -> None:
    """New kinds of lines without end are limited as well, and so is the memory for kinds."""
    for number in range(20_000):
        word = "".join(chr(97 + int(digit)) for digit in str(number))
        log.write(f"failed in {word}zyxw")
    assert len(log.lines) <= 256 + 101
    assert len(log.limits._known) <= 256


def test_the_relays_own_words(log: Log) -> None:
    """Lines at level INFO, which the relay writes about itself, are always written."""
    for _ in range(1000):
        log.write("kdispatch relay draining", level=logging.INFO)
    assert len(log.lines) == 1000


def test_verbose(log: Log) -> None:
    """With --verbose an operator sees the sessions of one busy agent, and a flood of them is limited too."""
    for number in range(50_000):
        log.now = number / 5000
        log.write("session began", level=logging.DEBUG, source="192.0.2.1")
    assert 400 <= len(log.lines) <= 700
