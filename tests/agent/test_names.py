"""Look-ups of names: fresh for each connection, with earlier addresses if there is no answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import pytest

from kdispatch.network.names import Names
from tests.agent.played import played

_ONE: Final[list[Any]] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]
_TWO: Final[list[Any]] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.2", 443))]


class _Resolver:
    """Replaces the loop's look-up: an answer is a list, an error, or a number of seconds of silence."""

    def __init__(self, *answers: list[Any] | OSError | float) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, _host: str, _port: int, **_: Any) -> list[Any]:
        self.asked += 1
        answer = self._answers.pop(0)
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        if isinstance(answer, OSError):
            raise answer
        return answer


def _use(monkeypatch: pytest.MonkeyPatch, *answers: list[Any] | OSError | float) -> tuple[Names, _Resolver]:
    resolver = _Resolver(*answers)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lambda _loop, *place, **how: resolver(*place, **how))
    return Names(), resolver


def test_each_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up for each connection, so that a relay that moves is found."""
    names, _ = _use(monkeypatch, _ONE, _TWO)

    async def look() -> None:
        assert await names.addresses("relay", 443, 8.0) == _ONE
        assert await names.addresses("relay", 443, 8.0) == _TWO

    played(look())


@pytest.mark.parametrize("failure", [socket.gaierror(socket.EAI_AGAIN, "away"), 30.0])
def test_a_resolver_that_is_away(monkeypatch: pytest.MonkeyPatch, failure: OSError | float) -> None:
    """If a look-up fails, or hangs for 1.5 s, the earlier addresses are used, for an hour."""
    names, _ = _use(monkeypatch, _ONE, failure, OSError("away"))

    async def look() -> None:
        loop = asyncio.get_running_loop()
        await names.addresses("relay", 443, 8.0)
        began = loop.time()
        assert await names.addresses("relay", 443, 8.0) == _ONE
        assert loop.time() - began <= 1.5
        await asyncio.sleep(3601)
        with pytest.raises(OSError, match="away"):
            await names.addresses("relay", 443, 8.0)

    played(look())


def test_a_name_that_never_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without earlier addresses the failure, or the time-out, is the result."""
    names, _ = _use(monkeypatch, socket.gaierror(socket.EAI_NONAME, "unknown"), 30.0)

    async def look() -> None:
        with pytest.raises(socket.gaierror):
            await names.addresses("relay", 443, 8.0)
        with pytest.raises(TimeoutError):
            await names.addresses("relay", 443, 8.0)
        await asyncio.sleep(30)

    played(look())


def test_one_look_up_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tries wait for a hanging resolver, they use one thread."""
    names, resolver = _use(monkeypatch, _ONE, 30.0, _TWO)

    async def look() -> None:
        await names.addresses("relay", 443, 8.0)
        for _ in range(5):
            assert await names.addresses("relay", 443, 8.0) == _ONE
        assert resolver.asked == 2
        await asyncio.sleep(30)
        assert await names.addresses("relay", 443, 8.0) == _TWO

    played(look())
