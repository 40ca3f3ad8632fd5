"""One live session with the relay, and a new one whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from kdispatch.backoff import Backoff
from kdispatch.dialer import Refusal, dial
from kdispatch.relay_url import RelayUrl
from kdispatch.running_log import SILENT, RunningLog
from kdispatch.slots import Identity
from kdispatch_protocol import events
from kdispatch_protocol.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint import Endpoint
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.events import Event
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.messages import printable

__all__ = ["Uplink"]

#: Codes of a GOAWAY after which another session would end the same way.
_FINAL: Final = frozenset({"version_unsupported", "revoked", "token_refused", "not_permitted"})
#: An agent that has been connected goes on trying even after a final answer that may not be the relay's.
_RARE: Final = 60.0
#: Of attempts at its streams an agent tells once in so many seconds: anybody can make them.
_ATTEMPTS: Final = 60.0


class Uplink:
    """The way to one relay. Events that concern no stream's transport go to ``on_event``.

    ``log`` hears when the session is lost, and when it is there again.
    """

    def __init__(
        self,
        relay: RelayUrl,
        on_event: Callable[[Event], None],
        *,
        log: RunningLog = SILENT,
        agent: str = "kdispatch",
        limits: Limits = DEFAULT_LIMITS,
        identity: Identity | None = None,
    ) -> None:
        self.relay = relay
        mine = identity or Identity()
        self.endpoint = Endpoint(mine.secret, agent=agent, limits=limits, predecessors=mine.predecessors)
        self.driver = EndpointDriver(self.endpoint, self._event)
        self._on_event = on_event
        self._log = log
        self._limits = limits
        self._backoff = Backoff()
        self._welcomed: asyncio.Future[None] | None = None
        self._stopping = False
        self._tell_again = 0.0  # when of the next attempt at a stream is told
        self._goaway: KdispatchError | None = None  # what the relay said before the session ended
        self._task: asyncio.Task[None] | None = None

    @property
    def process(self) -> str:
        """This process's id, as others see it."""
        return self.endpoint.process

    async def start(self, wait: float) -> None:
        """Get the first session, trying for ``wait`` seconds; then keep one until :meth:`stop`.

        Raises ``KdispatchError``: the last failure, or at once one that can't get better.
        """
        deadline = asyncio.get_running_loop().time() + wait
        told = False
        while True:
            try:
                lost = await self._connect()
                break
            except KdispatchError as error:
                pause = self._backoff.next_wait(error.retry_after if isinstance(error, Refusal) else 0.0)
                left = deadline - asyncio.get_running_loop().time()
                if _is_final(error, connected_before=False) or left <= 0:
                    raise
                if not told:
                    self._log.info(f"{error.text} Trying for {wait:g} s.", code=error.code)
                    told = True
                await asyncio.sleep(min(pause, left))
        self._task = asyncio.create_task(self._keep(lost), name="kdispatch uplink")

    @property
    def over(self) -> bool:
        """No session can be had any more, or it was stopped."""
        return self._task is not None and self._task.done()

    async def failed(self) -> None:
        """Wait until no session can be had any more; raises why."""
        assert self._task is not None, "start() comes first"
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """End every stream, tell its peer, and end the session."""
        self._stopping = True
        self.driver.end_streams()
        lost = self.driver.lost
        if lost is not None and not lost.done():
            self.driver.disconnect("", "The agent ends.")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(lost), 1.0)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KdispatchError):
                await self._task
        self.driver.stop()

    async def _connect(self) -> asyncio.Future[tuple[str, str]]:
        """One try: connect, upgrade, HELLO, WELCOME. Returns the future that tells when the session is over."""
        self._goaway = None
        try:
            async with asyncio.timeout(self._limits.handshake):
                upgraded = await dial(self.relay)
                lost = self.driver.connect(upgraded.transport, upgraded.early)
                self._welcomed = asyncio.get_running_loop().create_future()
                waiting: set[asyncio.Future[Any]] = {self._welcomed, lost}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self.driver.abort()
            raise KdispatchError(
                "relay_unreachable", f"{self.relay.host}:{self.relay.port} did not answer in time."
            ) from None
        except asyncio.CancelledError:
            self.driver.abort()
            raise
        if lost.done():
            code, text = lost.result()
            raise self._refusal(code, text)
        return lost

    async def _keep(self, lost: asyncio.Future[tuple[str, str]]) -> None:
        try:
            await self._keep_session(lost)
        except KdispatchError as error:
            self.driver.end_streams(error.code, error.text)  # no session will come for which they could wait
            raise

    async def _keep_session(self, lost: asyncio.Future[tuple[str, str]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                _code, text = await asyncio.shield(lost)
            except asyncio.CancelledError:
                self.driver.abort()  # the loop is ending: nobody else will close the connection
                raise
            if self._stopping:
                return
            if self._goaway is not None and _is_final(self._goaway, connected_before=False):
                raise self._goaway
            self._backoff.session_lasted(loop.time() - began)
            text = self._goaway.text if self._goaway else text
            code = self._goaway.code if self._goaway else None
            waiting = self.driver.waiting
            if waiting:
                text += f" {waiting} running connection{'s' * (waiting > 1)} can wait for {self._limits.grace:g} s."
            self._log.warning(f"Lost the session with the relay: {text} Reconnecting.", code=code)
            lost = await self._reconnect()
            self._log.info("The session with the relay is back.")

    async def _reconnect(self) -> asyncio.Future[tuple[str, str]]:
        pause = self._backoff.next_wait()
        while True:
            await asyncio.sleep(pause)
            try:
                return await self._connect()
            except KdispatchError as error:
                if _is_final(error, connected_before=True):
                    raise
                at_least = error.retry_after if isinstance(error, Refusal) else 0.0
                if error.code in {"not_a_relay", "captive_portal"}:
                    at_least = _RARE
                pause = self._backoff.next_wait(at_least)

    def _tell_of_attempt(self, code: str) -> None:
        now = self.driver.loop.time()
        if now >= self._tell_again:
            self._tell_again = now + _ATTEMPTS
            self._log.warning("Somebody tried to take a running connection over.", code=code)

    def _refusal(self, code: str, text: str) -> KdispatchError:
        """Why a session ended before it began."""
        return self._goaway or KdispatchError(code or "relay_unreachable", text)

    def _event(self, event: Event) -> None:
        if isinstance(event, events.SessionReady):
            self._backoff.spread = max(0.5, event.welcome.spread_ms / 1000)
            if self._welcomed is not None and not self._welcomed.done():
                self._welcomed.set_result(None)
        elif isinstance(event, events.SessionRefused):
            goaway = event.goaway
            self._goaway = KdispatchError.from_wire(goaway.code, printable(goaway.text))
        elif isinstance(event, events.AttachRefused):
            if event.code == "bad_proof":
                self._tell_of_attempt(event.code)
            return
        self._on_event(event)


def _is_final(error: KdispatchError, *, connected_before: bool) -> bool:
    """Whether trying again is no use. What something in between may have said ends only a first start."""
    if isinstance(error, Refusal):
        return error.final
    if error.code in _FINAL:
        return True
    return not connected_before and (error.code == "not_a_relay" or error.code.startswith("tls_"))
