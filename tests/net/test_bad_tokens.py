"""Acceptance point 5 of issue 9: a source that guesses tokens fails, and other sources notice nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from tests.net.bad_tokens import answer
from tests.net.harness import Relay, sizes

pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_RATIO: Final = 1.25  # of the medians; ten times as wide in the small form
_PAUSE: Final = 0.02  # seconds between an honest user's requests


@dataclass(frozen=True)
class Attack:
    """The total number of bad tokens, in rounds, and their rate a second."""

    tokens: int
    rounds: int
    rate: int
    factor: int  # of the bound


class Attacker:
    """A process that sends bad tokens from 127.0.0.1."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seen: Counter[str] = Counter()

    def begin(self, count: int, rate: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count} {rate}\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        assert self._process.stdout is not None
        self.seen.update(json.loads(self._process.stdout.readline()))


@contextmanager
def attacker(port: int) -> Iterator[Attacker]:
    command = [sys.executable, "-m", "tests.net.bad_tokens", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        made = Attacker(process)
        try:
            yield made
        finally:
            process.kill()


class Honest:
    """A user at 127.0.0.2 with a valid token, and the time of each answer."""

    def __init__(self, relay: Relay) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port_of(relay)), source_address=("127.0.0.2", 0))
        self._asked = f"GET /api/v1/whoami HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {relay.token}\r\n\r\n".encode()

    def ask(self, seconds: float) -> list[float]:
        """Send requests for this long; returns the seconds of each answer."""
        times = []
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends:
            self._socket.sendall(self._asked)
            assert answer(self._socket) == "200"
            times.append(time.perf_counter() - began)
            time.sleep(_PAUSE)
        return times

    def close(self) -> None:
        self._socket.close()


def port_of(relay: Relay) -> int:
    return int(relay.url.rpartition(":")[2])


@pytest.mark.parametrize("attack", sizes(Attack(200, 2, 400, 10), Attack(5000, 10, 400, 1)))
async def test_bad_tokens_of_one_source(own_relay: Relay, attack: Attack) -> None:
    """Of thousands of bad tokens from one source nine are looked up, and another source's requests take no longer."""
    await asyncio.to_thread(_attacked, own_relay, attack)


def _attacked(relay: Relay, attack: Attack) -> None:
    quiet: list[float] = []
    beside: list[float] = []
    honest = Honest(relay)
    honest.ask(0.2)
    each = attack.tokens // attack.rounds
    began = time.monotonic()
    with attacker(port_of(relay)) as bad:
        for _ in range(attack.rounds):
            quiet += honest.ask(each / attack.rate)
            bad.begin(each, attack.rate)
            beside += honest.ask(each / attack.rate)
            bad.finish()
        seconds = time.monotonic() - began
    honest.close()
    medians = [statistics.median(times) * 1000 for times in (quiet, beside)]
    print(f"\n{attack.tokens:,} bad tokens, {attack.rate} a second: {dict(bad.seen)}")
    print(f"an honest user's request takes {medians[0]:.2f} ms without, {medians[1]:.2f} ms beside them")
    # Nine at once, and one more every 6 s.
    assert 9 <= bad.seen["401"] <= 9 + seconds / 6 + 1
    assert bad.seen["401"] + bad.seen["429"] == attack.tokens
    assert medians[1] <= medians[0] * _RATIO * attack.factor
