"""Requests sent right after connecting, to hosts that often fail: none arrives twice, and none is lost silently."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import pytest

from kdispatch.host import LocalPort
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.limits import Limits
from tests.net.harness import Network, sizes
from tests.net.loop_stack import running_stack
from tests.net.tcp import Tcp, service

pytestmark = pytest.mark.slow

_PATIENCE: Final = 20.0  # seconds until every connection has ended, one way or the other
_AT_ONCE: Final = 40
_LIMITS: Final = Limits(dial=0.3, open_host=0.5, open_total=3.0, open_wait_start=0.5, open_wait_lost=1.0)


class _Requests:
    """What clients sent, what services received, and how each connection ended."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.got: Counter[bytes] = Counter()
        self.ends: Counter[str] = Counter()
        self.clean_ends = 0  # ends that services saw before the request was complete

    async def ask(self, port: int, number: int) -> None:
        """Send one request in one piece, up to twice as long as early data may be; read the answer or the reset."""
        request = b"%08d" % number + bytes(self.random.choice([0, 100, 16_376, 32_000])) + b"\n"
        try:
            async with asyncio.timeout(_PATIENCE), await Tcp.connect(port) as tcp:
                await tcp.send(request)
                answer = await tcp.receive_all()
        except ConnectionError:
            self.ends["reset"] += 1
        else:
            assert answer == b"%08d done" % number, f"a clean end after {answer!r}"
            self.ends["answer"] += 1

    async def ask_all(self, ports: list[int], count: int) -> None:
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int) -> None:
            async with room:
                await self.ask(self.random.choice(ports), number)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))
        twice = [request for request, times in self.got.items() if times > 1]
        assert not twice
        assert self.ends["answer"] <= len(self.got)

    async def take(self, tcp: Tcp) -> bytes:
        """A service's side: read the request's number, and record it."""
        number = await self._number(tcp)
        while not (piece := await tcp.receive()).endswith(b"\n"):
            if not piece:
                self._cut_short()
        return number

    async def _number(self, tcp: Tcp) -> bytes:
        number = b""
        while len(number) < 8:
            piece = await tcp.receive(8 - len(number))
            if not piece:
                self._cut_short(whole=not number)
            number += piece
        self.got[number] += 1
        return number

    def _cut_short(self, *, whole: bool = False) -> NoReturn:
        self.clean_ends += not whole  # without a byte it is a dial that was given up
        raise ConnectionAbortedError("a clean end before the request's")

    async def answer(self, tcp: Tcp) -> None:
        await tcp.send(await self.take(tcp) + b" done")

    async def answer_or_die(self, tcp: Tcp) -> None:
        """A service that often resets: before the request, in the middle of it, or instead of the answer."""
        match self.random.randrange(4):
            case 0:
                tcp.reset()
            case 1:
                await self._number(tcp)
                tcp.reset()
            case 2:
                await self.take(tcp)
                tcp.reset()
            case _:
                await self.answer(tcp)


class _Moody:
    """A host's random behaviour: dial the service, refuse, never answer, answer late, or lose the session."""

    def __init__(self, requests: _Requests, port: int) -> None:
        self.local = LocalPort("127.0.0.1", port, _LIMITS)
        self._random = requests.random
        self._moods: list[Callable[[EndpointDriver, Stream], None]] = [
            self.local,
            self.local,
            self.local,
            lambda driver, stream: driver.refuse(stream, "host_refused", "in no mood"),
            lambda driver, stream: None,
            lambda driver, stream: self._later(0.45, driver, stream),
            lambda driver, stream: self._later(0.6, driver, stream),
        ]

    def _later(self, seconds: float, driver: EndpointDriver, stream: Stream) -> None:
        driver.loop.call_later(seconds, self.local, driver, stream)

    def __call__(self, driver: EndpointDriver, stream: Stream) -> None:
        if self._random.random() < 0.03:
            driver.loop.call_later(self._random.choice([0, 0.001, 0.005]), driver.abort)
        self._random.choice(self._moods)(driver, stream)


async def _refused_port() -> int:
    async with service(_nobody) as closed:
        return closed.port


async def _nobody(tcp: Tcp) -> None:
    """Never called."""


@pytest.mark.parametrize("count", sizes(150, 2000))
async def test_no_request_is_delivered_twice(tmp_path: Path, count: int) -> None:
    """Whatever hosts and services do, a request reaches at most one of them, and is answered or reset."""
    requests = _Requests(4)
    async with (
        service(requests.answer) as good,
        service(requests.answer_or_die) as dying,
        running_stack(tmp_path, _LIMITS) as stack,
    ):
        await stack.host(good.port)
        await stack.host(await _refused_port())
        for port in (good.port, good.port, dying.port):
            moody = _Moody(requests, port)
            moody.local.host = await stack.host(moody)
        ports = [(await stack.client())[1] for _ in range(2)]
        await requests.ask_all(ports, count)
        print(dict(requests.ends), Counter(stack.resets).most_common())
        assert requests.ends["answer"] > count // 4
        assert not requests.clean_ends


@pytest.mark.parametrize("kills", sizes(2, 8))
async def test_killed_host_loses_no_request_silently(network: Network, kills: int) -> None:
    """Requests at a host that is killed are answered by another one or reset, and none is delivered twice."""
    requests = _Requests(5)

    async def slow_answer(tcp: Tcp) -> None:
        number = await requests.take(tcp)
        await asyncio.sleep(requests.random.random() * 0.02)
        await tcp.send(number + b" done")

    name = await network.service()
    async with service(slow_answer) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name, "--grace", "1", "--open-wait", "5")
        victims = await asyncio.gather(*(network.host(name, running.port) for _ in range(kills)))
        asking = asyncio.create_task(requests.ask_all([port], 150 * kills))
        for victim in victims:
            await asyncio.sleep(0.1)
            victim.stop(signal.SIGKILL)
        await asking
        print(dict(requests.ends))
        assert requests.ends["answer"] > 100 * kills
