"""Slow measurements, done only on request: the silence that the path allows, and its throughput."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from kdispatch.doctor.findings import Finding, failed, ok, warns
from kdispatch.doctor.session import QUIET, ProbeSession
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.limits import DEFAULT_LIMITS

__all__ = ["AFTER", "Silences", "check_idle", "check_speed", "measure"]

#: Seconds of silence after which a session is asked whether it is alive. The steps enclose the limits of known boxes:
#: 55 (Heroku), 60 (nginx, ALB), 100 (Cloudflare), 240 (Azure), 350 (NLB).
AFTER: Final = (12.0, 25.0, 40.0, 58.0, 90.0, 120.0, 180.0, 235.0, 300.0, 355.0)
_ANSWER: Final = 5.0
#: A relay without the capability cuts sessions itself after this much silence.
_ANYBODY: Final = DEFAULT_LIMITS.dead_relay - 2
_BUSY: Final = 0.5  # seconds between two PINGs of the session that is never silent
#: How much longer than the silent sessions the busy one must last, to distinguish silence from age.
_LONGER: Final = 1.5
#: A silence limit closer than this to our own PING interval is worth a warning.
_ROOM: Final = 2 * DEFAULT_LIMITS.ping

_FLOOD: Final = 3.0  # seconds
_FLOOD_PINGS: Final = 512  # in a message, 8 KiB
#: All PINGs of a measurement, 128 KiB: a relay ends a session after 10,000 frames that change nothing.
_FLOOD_ALL: Final = 16 * _FLOOD_PINGS
_PING_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Silences:
    """The measurement: when sessions ended, in seconds, or ``None`` if they did not.

    A silent session was alive after ``lived`` and not after ``silence``. ``seen``: its end was noticed at that moment.
    ``life`` is the age at which the session ended that was never silent.
    """

    lived: float
    silence: float | None = None
    seen: bool = False
    life: float | None = None


async def measure(
    open_quiet: Callable[[], Awaitable[ProbeSession]], after: Sequence[float] = AFTER, answer: float = _ANSWER
) -> Silences:
    """Hold one session per silence in ``after``, and one that is never silent. Raises ``KdispatchError``."""
    sessions: list[ProbeSession] = []
    try:
        while len(sessions) <= len(after):  # one by one: a relay accepts only so many at once
            sessions.append(await open_quiet())
            welcome = sessions[0].welcome.result()
            if QUIET not in welcome.capabilities:
                after = [seconds for seconds in after if seconds < _ANYBODY]
        return await _measured(sessions[0], dict(zip(after, sessions[1:], strict=True)), answer)
    finally:
        for session in sessions:
            session.close()


async def _measured(busy: ProbeSession, silent: Mapping[float, ProbeSession], answer: float) -> Silences:
    aging = asyncio.create_task(_keep_busy(busy, answer))
    tasks = [asyncio.create_task(_be_silent(session, seconds, answer)) for seconds, session in silent.items()]
    try:
        lived, end = 0.0, None
        for task in tasks:  # the shortest silence first
            await asyncio.wait({task, aging}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                break
            seconds, end = task.result()
            if end is not _End.NONE:
                await asyncio.wait({aging}, timeout=(_LONGER - 1) * seconds + 2 * _BUSY)
                life = aging.result() if aging.done() else None
                return Silences(lived, seconds, end is _End.SEEN, life)
            lived = seconds
        return Silences(lived, life=aging.result() if aging.done() else None)
    finally:
        for one in (aging, *tasks):
            one.cancel()
        await asyncio.gather(aging, *tasks, return_exceptions=True)


class _End(Enum):
    NONE = auto()
    SEEN = auto()  # at the moment when it happened
    FOUND = auto()  # at the next question


async def _keep_busy(session: ProbeSession, answer: float) -> float:
    """Ping all the time; returns the age that the session reached."""
    loop = asyncio.get_running_loop()
    last = session.began
    while await session.ping(answer) is not None:
        last = loop.time()
        await asyncio.wait({session.over}, timeout=_BUSY)
    return (loop.time() if session.over.done() else last) - session.began


async def _be_silent(session: ProbeSession, seconds: float, answer: float) -> tuple[float, _End]:
    """Stay silent for ``seconds``, then ping; returns the length of the silence, and the session's end, if any."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.wait({session.over}, timeout=seconds)
    if session.over.done():
        return loop.time() - began, _End.SEEN
    return seconds, _End.FOUND if await session.ping(answer) is None else _End.NONE


async def check_idle(open_quiet: Callable[[], Awaitable[ProbeSession]], owner: str) -> list[Finding]:
    """Check how silence and age affect sessions. ``owner`` says whom to ask."""
    try:
        found = await measure(open_quiet)
    except KdispatchError as error:
        return [failed("idle", error)]
    if found.life is not None:
        text = f"Every connection is cut after about {found.life:.0f} s, silent or busy."
        hint = f"{owner} for longer. Connections through kdispatch continue in a new session each time."
        return [warns("idle", text, hint)]
    if found.silence is None:
        return [ok("idle", f"a silence of {found.lived:.0f} s is no reason to cut a session")]
    exactly = f"{found.silence:.0f} s" if found.seen else f"{found.lived:.0f} to {found.silence:.0f} s"
    how = "" if found.seen else ", without notice"
    text = f"Connections are cut after {exactly} of silence{how}; agents send a PING after {DEFAULT_LIMITS.ping:g} s"
    if found.silence > _ROOM:
        return [ok("idle", text)]
    return [warns("idle", f"{text}.", f"{owner}, and not to cut them before 60 s of silence.")]


async def check_speed(session: ProbeSession) -> list[Finding]:
    """Measure how many PINGs and answers pass in a few seconds, with as many in flight as possible."""
    loop = asyncio.get_running_loop()
    began, answered, sent = loop.time(), session.answered, 0
    while loop.time() - began < _FLOOD and sent < _FLOOD_ALL and not session.over.done():
        await session.flood(_FLOOD_PINGS)
        sent += _FLOOD_PINGS
    while session.answered - answered < sent and not session.over.done() and await session.hears(_ANSWER):
        pass
    count, seconds = session.answered - answered, loop.time() - began
    if count < sent or not sent:
        text = f"Of {sent} PINGs sent as fast as they go, {count} were answered."
        return [warns("speed", text, "Try again; then ask the network's owner.", code="relay_unreachable")]
    rate = 8 * _PING_BYTES * count / seconds / 1e6
    return [ok("speed", f"at least {rate:.1f} Mbit/s each way at once, measured with PINGs and the relay's answers")]
