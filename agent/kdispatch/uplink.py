"""One live session with the relay, replaced when it is lost, too old, or when the relay asks the agent to leave.

The agent leaves a working session in order: it makes another session beside it,
moves the streams over one by one, and closes the old one when it is empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from typing import Any, Final

from kdispatch.backoff import HURRY, Backoff
from kdispatch.condition import Condition
from kdispatch.local.vanished import watching_peers
from kdispatch.machine.slots import ProcessIdentity
from kdispatch.meeting import Meeting
from kdispatch.network.dialer import Dialer, Upgraded
from kdispatch.network.path_limits import PathLimits, Paths
from kdispatch.network.spoiled import frames_spoiled
from kdispatch.network.upgrade import Refusal
from kdispatch.redial import redial
from kdispatch.running_log import SILENT, RunningLog
from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.uplink_session import UplinkSession
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.wire.messages import printable

__all__ = ["Uplink"]

#: GOAWAY codes after which another session would end the same way.
_FINAL: Final = frozenset({"version_unsupported", "revoked", "token_refused", "not_permitted"})
#: Codes from devices between an agent and its relay, or from something in the relay's place.
_IN_BETWEEN: Final = frozenset({"not_a_relay", "captive_portal", "proxy_auth", "proxy_refused"})
#: Seconds between tries of an agent that was connected before, after a final answer that may not be the relay's.
_RARE: Final = 60.0
#: Shortest interval in seconds between log lines about attach attempts by others, because anybody can make them.
_ATTEMPTS: Final = 60.0
#: Seconds that the relay has to close its side of a session that the agent left.
_CLOSING: Final = 3.0
#: Shortest useful session in seconds. After a shorter one that carried nothing the agent does not hurry back.
_WORKED: Final = 0.5


class Uplink:
    """The connection to one relay. Events that concern no stream's transport go to ``on_event``.

    ``log`` reports the loss and the return of the session.
    """

    def __init__(
        self,
        dialer: Dialer,
        on_event: Callable[[Event], None],
        *,
        log: RunningLog = SILENT,
        agent: str = "kdispatch",
        limits: Limits = DEFAULT_LIMITS,
        identity: ProcessIdentity | None = None,
    ) -> None:
        self.dialer = dialer
        mine = identity or ProcessIdentity()
        self.endpoint = Endpoint(mine.secret, agent=agent, limits=limits, predecessors=mine.predecessors)
        self.driver = EndpointDriver(self.endpoint, self._event)
        self.condition = Condition(self.driver)
        self._on_event = on_event
        self._log = log
        self._limits = limits
        self._backoff = Backoff()
        self._away_since = -math.inf  # when the last useful session was lost
        self._lost_at = 0.0  # when the last session was lost
        self._paths = Paths(limits)
        self._path: dict[UplinkSession, PathLimits] = {}  # of the newest session, and of the one before it
        self._meeting: Meeting | None = None  # of the newest session
        self._told: asyncio.Future[None] | None = None  # waits for the relay's GOAWAY in some session
        self._departures: set[asyncio.Task[None]] = set()  # from sessions that the agent leaves
        self._stopping = False
        self._tell_again = 0.0  # when to log the next attach attempt
        self._task: asyncio.Task[None] | None = None

    @property
    def process(self) -> str:
        """This process's public id."""
        return self.endpoint.process

    async def start(self, wait: float) -> None:
        """Get the first session, trying for ``wait`` seconds; then keep one until :meth:`stop`.

        Raises ``KdispatchError``: the last failure, or at once a failure that is final.
        """
        deadline = asyncio.get_running_loop().time() + wait
        told = False
        while True:
            try:
                session = await self._connect()
                break
            except KdispatchError as error:
                self.condition.failed(error.code, error.text)
                pause = self._backoff.next_wait(error.retry_after if isinstance(error, Refusal) else 0.0)
                left = deadline - asyncio.get_running_loop().time()
                if _is_final(error, connected_before=False) or left <= 0:
                    explained = await self.dialer.explained(error)
                    if explained is error:
                        raise
                    raise explained from error
                if not told:
                    self._log.info(f"{error.text} Trying for {wait:g} s.", code=error.code)
                    told = True
                with self.condition.waiting(min(pause, left)) as seconds:
                    await asyncio.sleep(seconds)
        self._task = asyncio.create_task(self._keep(session), name="kdispatch uplink")

    @property
    def over(self) -> bool:
        """Whether no session is possible any more, or the uplink was stopped."""
        return self._task is not None and self._task.done()

    async def failed(self) -> None:
        """Wait until no session is possible any more; raises the reason."""
        assert self._task is not None, "start() comes first"
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """End every stream, tell the peers, and end the session."""
        self._stopping = True
        self.driver.end_streams()
        self.driver.disconnect("", "The agent ends.")
        ending = self.driver.sessions
        if ending:
            await asyncio.wait([session.lost for session in ending], timeout=1.0)
        tasks = [*self._departures, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, KdispatchError):
                await task
        self.driver.stop()

    async def _connect(self) -> UplinkSession:
        """One try: connect, upgrade, HELLO, WELCOME. Returns the session once it is ready."""
        return await self._begin(await self._upgraded())

    async def _upgraded(self) -> Upgraded:
        try:
            async with asyncio.timeout(self._limits.handshake):
                return await self.dialer.upgrade()
        except ValueError as error:  # raised by a library for unreadable bytes: not a reason to end
            text = f"{self.dialer.relay.authority}: Its answer can't be read."
            raise KdispatchError("not_a_relay", text) from error
        except TimeoutError:
            raise self._no_answer() from None

    def _no_answer(self) -> KdispatchError:
        return KdispatchError("relay_unreachable", f"{self.dialer.relay.authority} did not answer in time.")

    async def _begin(self, upgraded: Upgraded) -> UplinkSession:
        """Send HELLO over a new connection. Returns the session once the relay has welcomed it."""
        path, now = self._find_path(upgraded), self.driver.loop.time()
        session = self.driver.connect(upgraded.carrier(self.driver.buffer, self._limits.message), ping=path.ping(now))
        meeting = self._meeting = Meeting(self.dialer, session, upgraded.relay)
        if not await meeting.over(self._limits.handshake / 2):
            raise self._no_answer()
        if meeting.foreign is not None:
            self._log.warning(meeting.foreign.text, code=meeting.foreign.code)
            raise meeting.foreign
        if session.lost.done():
            code, text = session.lost.result()
            if code == "protocol_error" and not meeting.welcomed:
                raise frames_spoiled(upgraded.relay, self.dialer.proxy(upgraded.relay))
            raise _farewell(session) or KdispatchError(code or "relay_unreachable", text)
        self._path[session] = self.condition.path = path
        return session

    def _find_path(self, upgraded: Upgraded) -> PathLimits:
        own = upgraded.transport.get_extra_info("sockname") or [""]
        path, learnt = self._paths.reached(str(own[0]), str(upgraded.relay), self.driver.loop.time())
        if learnt:
            self._log.info(learnt)
        return path

    async def _keep(self, session: UplinkSession) -> None:
        try:
            with watching_peers(self.driver):
                await self._keep_session(session)
        except KdispatchError as error:
            self.driver.end_streams(error.code, error.text)  # no session will come for them
            raise
        except asyncio.CancelledError:
            self.driver.abort()  # the loop is ending, and nothing else will close the connections
            raise

    async def _keep_session(self, session: UplinkSession) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began, carried = loop.time(), self.driver.carried
            newer = await self._move(session) if await self._time_to_go(session) else None
            if newer is not None:
                self._paths.over(self._path.pop(session), session.link.course, said=True)
                session = newer
                continue
            code, text = await asyncio.shield(session.lost)
            self.condition.lost()
            self._paths.over(self._path.pop(session), session.link.course, said=session.session.goaway is not None)
            if self._stopping:
                return
            farewell = _farewell(session)
            if farewell is not None and _is_final(farewell, connected_before=False):
                raise farewell
            self._note_end(loop.time() - began, self.driver.carried - carried)
            text = farewell.text if farewell else text
            self.condition.failed(farewell.code if farewell else code or "relay_unreachable", text)
            waiting = self.driver.waiting
            if waiting:
                text += f" {waiting} running connection{'s' * (waiting > 1)} can wait for {self._limits.grace:g} s."
            self._log.warning(
                f"Lost the session with the relay: {text} Reconnecting.", code=farewell.code if farewell else None
            )
            session = await self._reconnect()
            self._log.info("The session with the relay is back.")

    def _note_end(self, lasted: float, carried: int) -> None:
        """A session was lost after ``lasted`` seconds and ``carried`` bytes of programs."""
        self._backoff.session_ended(lasted, carried)
        self._lost_at = self.driver.loop.time()
        if lasted >= _WORKED or carried:
            self._away_since = self._lost_at

    async def _reconnect(self) -> UplinkSession:
        pause = self._next_wait()
        while True:
            upgraded = await redial(
                self._upgraded,
                pause=pause,
                failed=self._try_failed,
                silence=lambda: self._backoff.silence(self._away),
                waits=self.condition.tries_at,
                let_go=lambda late: late.transport.abort(),
            )
            try:
                return await self._begin(upgraded)
            except KdispatchError as error:
                pause = self._try_failed(error)

    def _try_failed(self, error: KdispatchError) -> float:
        """Seconds until the next try; raises the error if it is final."""
        self._paths.unreachable()
        self.condition.failed(error.code, error.text)
        if _is_final(error, connected_before=True):
            raise error
        return self._next_wait(error)

    @property
    def _away(self) -> float:
        """Seconds without a useful session."""
        return self.driver.loop.time() - self._away_since

    def _next_wait(self, error: KdispatchError | None = None) -> float:
        """Seconds until the next try for a session, after a loss or a failed try."""
        left = self._lost_at + self._limits.grace - self.driver.loop.time() if self.driver.waiting else math.inf
        return self._pause_after(error, self._backoff, self._away, left)

    @staticmethod
    def _pause_after(
        error: KdispatchError | None, backoff: Backoff, away: float = math.inf, left: float = math.inf
    ) -> float:
        at_least = error.retry_after if isinstance(error, Refusal) else 0.0
        if away < HURRY and error is not None and error.code == "relay_unreachable":
            at_least = 0.0  # set by a server in front, which names a fixed time (Varnish: 5 s)
        if error is not None and error.code == "proxy_auth":  # each try counts towards locking the account
            return backoff.next_wait(_RARE)
        rare = error is not None and (error.code in _IN_BETWEEN or (isinstance(error, Refusal) and error.final))
        if rare and away >= HURRY:
            at_least = _RARE
        return backoff.next_wait(at_least, away=away, left=left)

    # --- planned moves ------------------------------------------------------------------------

    async def _time_to_go(self, session: UplinkSession) -> bool:
        """Wait until the session is to be left, or is lost; returns whether to leave it."""
        loop = asyncio.get_running_loop()
        due = loop.time() + random.uniform(*self._path[session].rotate(loop.time()))  # noqa: S311 - jitter, no secret
        asked = False
        while not session.lost.done():
            goaway = session.session.goaway
            if goaway is not None and goaway.try_ms and not asked:
                asked = True
                due = min(due, loop.time() + random.uniform(0, goaway.move_ms / 1000))  # noqa: S311 - jitter, no secret
            if loop.time() >= due:
                return True
            self._told = loop.create_future()
            either: set[asyncio.Future[Any]] = {session.lost, self._told}
            await asyncio.wait(either, timeout=due - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        return False

    async def _move(self, session: UplinkSession) -> UplinkSession | None:
        """Get another session beside this one, and let it take over; ``None`` if this one was lost meanwhile."""
        backoff = Backoff()
        backoff.spread = self._backoff.spread
        goaway = session.session.goaway
        if goaway is not None:
            self._log.info(f"{printable(goaway.text) or 'The relay ends.'} Moving to its successor.", code=goaway.code)
        while not session.lost.done():
            try:
                newer = await self._connect()
            except KdispatchError as error:
                self.condition.failed(error.code, error.text)
                with self.condition.waiting(self._pause_after(error, backoff)) as seconds:
                    await asyncio.wait({session.lost}, timeout=seconds)
                continue
            if goaway is not None:
                self._log.info("Moved. Running connections follow.")
            departure = asyncio.create_task(self._depart(session), name="kdispatch departure")
            self._departures.add(departure)
            departure.add_done_callback(self._departures.discard)
            return newer
        return None

    async def _depart(self, session: UplinkSession) -> None:
        """Close a session that was replaced, once no stream is left on it.

        A host stays with a relay that ends, because clients of that relay can still ask for it there.
        """
        goaway = session.session.goaway
        stays = goaway is not None and self.endpoint.offering
        seconds = goaway.try_ms / 1000 if goaway is not None and goaway.try_ms else self._limits.leave
        if not stays:
            self.driver.leave(session)
        gone: set[asyncio.Future[Any]] = {session.lost}
        left = asyncio.ensure_future(session.left.wait())
        try:
            await asyncio.wait(gone | {left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
        session.close("", "The agent has moved.")
        await asyncio.wait(gone, timeout=_CLOSING)
        session.abort()

    def _tell_of_attempt(self, code: str) -> None:
        now = self.driver.loop.time()
        if now >= self._tell_again:
            self._tell_again = now + _ATTEMPTS
            self._log.warning("Another process tried to take over a running connection.", code=code)

    def _event(self, event: Event) -> None:
        if isinstance(event, events.SessionReady):
            if self._meeting is not None and not self._meeting.welcome(event.welcome.relay):
                return
            self._backoff.spread = max(0.5, event.welcome.spread_ms / 1000)
            self.condition.connected()
        elif isinstance(event, events.SessionRefused):
            if self._told is not None and not self._told.done():
                self._told.set_result(None)
        elif isinstance(event, events.AttachRefused):
            if event.code == "bad_proof":
                self._tell_of_attempt(event.code)
            return
        elif isinstance(event, events.PongReceived):
            self.condition.answered(event.value)
            return
        elif isinstance(event, events.StreamWasReset):
            self.condition.stream_was_reset(event.code, event.text)
        self._on_event(event)


def _farewell(session: UplinkSession) -> KdispatchError | None:
    """The relay's GOAWAY before the end of the session, as an error."""
    goaway = session.session.goaway
    return KdispatchError.from_wire(goaway.code, printable(goaway.text)) if goaway is not None else None


def _is_final(error: KdispatchError, *, connected_before: bool) -> bool:
    """Whether another try is useless. Answers that may come from a device in between end only a first start."""
    if isinstance(error, Refusal):
        # An agent that was connected outlives a box that removes the upgrade, and a mistyped name at the relay.
        return error.final and (not connected_before or error.code in _FINAL)
    if error.code in _FINAL:
        return True
    return not connected_before and (error.code in _IN_BETWEEN or error.code.startswith("tls_"))
