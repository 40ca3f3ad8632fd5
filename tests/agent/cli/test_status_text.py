"""The text form of 'kdispatch status'."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from typing import Any

import pytest

from kdispatch.cli.screen import Screen
from kdispatch.cli.status_text import described, fitting, summary

HOST = "0f" * 16
STREAM: dict[str, Any] = {
    "id": "1234567890abcdef", "service": "ann/web", "state": "open", "host": HOST, "peer": "ab" * 16,
    "sent": 1023, "received": 1024, "age": 59.9, "detached": None,
}  # fmt: skip
AGENT: dict[str, Any] = {
    "id": "aaaabbbbcccc", "kind": "connect", "relay": "https://r.example", "pid": 7, "started": "", "log": None,
    "machine": "lab-1", "whereabouts": None,
    "state": "connected", "connected_for": 61.0, "round_trip": 0.0123, "unanswered": 0.2, "next_try": None,
    "idle_limit": None, "age_limit": None, "last_error": None, "drains_for": None, "stream_count": 0, "streams": [],
    "services": [{"service": "ann/web", "host": None, "address": "127.0.0.1", "port": 9090, "offered": None}],
}  # fmt: skip
OFFERED: dict[str, Any] = {
    **AGENT, "kind": "host",
    "services": [{"service": "ann/web", "host": HOST, "address": "127.0.0.1", "port": 8080, "offered": True}],
}  # fmt: skip


def test_a_client() -> None:
    """An agent is two lines while all is well: what it does, and the state of its session."""
    assert described([AGENT]) == [
        "aaaabbbbcccc  connect of ann/web, 127.0.0.1:9090",
        "  relay    https://r.example, connected for 1 min, round trip 12.3 ms",
    ]
    assert summary(AGENT) == (
        "aaaabbbbcccc connect of ann/web: connected for 1 min, round trip 12.3 ms, 0 streams"
    )  # fmt: skip


@pytest.mark.parametrize(("offered", "word"), [(True, ", offered"), (False, ", not offered"), (None, "")])
def test_a_host(offered: bool | None, word: str) -> None:
    """A host says whether the relay lists it."""
    agent = {**OFFERED, "services": [{**OFFERED["services"][0], "offered": offered}]}
    assert described([agent])[1] == f"  host     {HOST}{word}"


def test_streams() -> None:
    """Streams are a table with readable sizes and times; the other end of a host's is a client."""
    waiting = {
        **STREAM,
        "state": "detached",
        "detached": 3.7,
        "expires_in": 116.3,
        "sent": 5 << 40,
        "received": 1 << 60,
        "age": 90000.0,
    }
    opening = {**STREAM, "state": "opening", "host": None, "sent": 0, "received": 0, "age": None}
    lines = described([{**AGENT, "stream_count": 1030, "streams": [STREAM, waiting, opening]}])
    assert lines[2:] == [
        "  streams  1030",
        "    STREAM    STATE                     SENT     RECEIVED       AGE   HOST",
        f"    12345678  open                      1023 B   1.0 KiB        59 s  {HOST}",
        f"    12345678  detached 3 s, 116 s left  5.0 TiB  1048576.0 TiB  1 d   {HOST}",
        "    12345678  opening                   0 B      0 B            -     -",
        "    and 1027 more",
    ]
    assert described([{**OFFERED, "stream_count": 1, "streams": [STREAM]}])[-1].endswith("ab" * 16)


@pytest.mark.parametrize(("height", "rows"), [(5, 0), (6, 0), (11, 0), (12, 1), (14, 2), (400, 100)])
def test_every_agent_is_seen(height: int, rows: int) -> None:
    """On a screen, streams share the room that the agents leave, in equal parts."""
    busy = {**AGENT, "stream_count": 100, "streams": [STREAM] * 100}
    lines = fitting([busy, busy], height)
    assert sum("12345678" in line for line in lines) == 2 * rows
    assert sum("connect of" in line for line in lines) == 2 and len(lines) <= max(height, 6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"state": "reconnecting", "connected_for": None, "round_trip": None, "next_try": 2.34},
            "  relay    https://r.example, reconnecting, next try in 2.3 s",
        ),
        ({"unanswered": 3.2}, "  relay    https://r.example, connected for 1 min, no answer for 3 s"),
        ({"idle_limit": 9.8}, "  network  cuts sessions that are silent for 9 s"),
        ({"idle_limit": 10.0, "age_limit": 60.0}, "  network  cuts sessions that are silent for 10 s or 1 min old"),
        ({"drains_for": 25.0}, "  draining for 25 s at most: no new streams"),
        (
            {"last_error": {"code": "no_live_host", "text": "Nobody.", "ago": 7300.0}},
            "  error    2 h ago: Nobody. [no_live_host]",
        ),
        (
            {"state": "elsewhere", "whereabouts": "runs on machine lab-2", "stream_count": None, "round_trip": None},
            "  relay    https://r.example, elsewhere: runs on machine lab-2, if it runs",
        ),
        (
            {"state": "not answering", "stream_count": None, "round_trip": None},
            "  relay    https://r.example, not answering: process 7 says nothing",
        ),
    ],
)
def test_trouble(changes: dict[str, Any], line: str) -> None:
    """Problems are shown where a person looks first."""
    assert line in described([{**AGENT, **changes}])


def test_a_screen_is_never_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repaint is one write as large as the terminal; at the end the original screen comes back."""
    out, before = io.StringIO(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((5, 3)))
    with Screen() as screen:
        begun = len(out.getvalue())
        screen.show(["1234567", "2"])
        first = out.getvalue()[begun:]
        screen.show(["1", "2", "3", "4"])
        second = out.getvalue()[begun + len(first) :]
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    assert first == "\x1b[H12345\x1b[K\r\n2\x1b[K\x1b[J"
    assert second == "\x1b[H1\x1b[K\r\n2\x1b[K\r\nand 2\x1b[K\x1b[J"
    assert ended.value.code == 128 + signal.SIGTERM
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")
    assert signal.getsignal(signal.SIGTERM) == before
