"""An agent's life from its record to its end: its identity, its control socket, its shutdown."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kdispatch.cli.interruption import Interruption, uncancel_current_task
from kdispatch.cli.running import RunSetup, Start
from kdispatch.machine import records
from kdispatch.machine.records import HeldRecord, Record
from kdispatch.running_log import RunningLog
from kdispatch.setup_error import SetupError

if TYPE_CHECKING:
    from kdispatch.machine.slots import ProcessIdentity, Slot
    from kdispatch.uplink import Uplink

__all__ = ["Life", "in_slot", "recorded", "until_interrupted"]

Claim = Callable[[], Awaitable[None]]

#: Seconds that a status waits for the relay's answer to a PING: longer than the longest round trip on earth.
_ROUND_TRIP_WAIT: Final = 0.5

#: Fields of a record that are only for readers of records.
_INNER: Final = frozenset({"draining", "drain_time", "control", "control_token", "place", "process_started"})


@dataclasses.dataclass(slots=True, kw_only=True)
class Life:
    """The parts of a running agent that its status and its end need.

    ``services`` returns what it offers or reaches, ``take_no_more`` stops new streams.
    """

    start: Start
    log: RunningLog
    interruption: Interruption
    uplink: Uplink
    services: Callable[[], Sequence[dict[str, Any]]]
    take_no_more: Callable[[], None]
    ends_at: float | None = None  # while it drains: when the remaining streams are reset

    @property
    def running(self) -> int:
        """Number of streams."""
        from kdispatch.status import running_streams  # noqa: PLC0415 - heavy

        return running_streams(self.uplink.driver)

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Answer ``status`` at the control socket."""
        from kdispatch.status import agent_status  # noqa: PLC0415 - heavy

        await self.uplink.condition.measure(_ROUND_TRIP_WAIT)
        left = None if self.ends_at is None else max(0.0, round(self.ends_at - self.uplink.driver.loop.time(), 3))
        return {"agent": agent_status(self.uplink, self.services(), drains_for=left)}

    async def stop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer ``stop`` at the control socket: act like the first signal, or with ``now`` like the second."""
        # The answer must be sent before the process ends.
        end = self.interruption.end if request.get("now") is True else self.interruption.drain
        self.uplink.driver.loop.call_soon(end)
        return {"running": self.running}


@contextlib.asynccontextmanager
async def in_slot(start: Start, access: RunSetup, log: RunningLog) -> AsyncIterator[tuple[ProcessIdentity, Claim]]:
    """Hold a slot while the agent runs; without a slot the agent runs anyway.

    Yields the agent's identity, and a function to await once the agent has a session.
    """
    import asyncio  # noqa: PLC0415 - help and completion do not need it

    from kdispatch.machine.slots import ProcessIdentity, take_slot  # noqa: PLC0415

    @contextlib.contextmanager
    def tolerant() -> Iterator[None]:
        try:
            yield
        except SetupError as error:
            log.warning(f"{error.text} If this agent is killed, its peers will not know at once.", code=error.code)

    slot: Slot | None = None

    async def claim() -> None:
        if slot is not None:
            with tolerant():
                await asyncio.to_thread(slot.claim)

    with tolerant():
        slot = await asyncio.to_thread(take_slot, start.kind, access.service, str(access.relay))
    if slot is not None and slot.told is not None:
        log.info(slot.told)
    try:
        yield ProcessIdentity() if slot is None else slot.identity, claim
    finally:
        if slot is not None:
            slot.close()


@contextlib.asynccontextmanager
async def recorded(
    life: Life, access: RunSetup, **fields: Any
) -> AsyncIterator[tuple[dict[str, Any], HeldRecord | None]]:
    """Keep a record, and answer at the control socket, while the agent runs; yields the command's result, the record.

    If no record can be written, an agent in the foreground runs without one. Files are
    written in a thread, because a slow disk must not stop the streams.
    """
    import asyncio  # noqa: PLC0415 - help and completion do not need it

    start = life.start
    agent = start.background or records.new_id()
    record = Record(
        id=agent,
        kind=start.kind,
        service=access.service,
        relay=str(access.relay),
        drain_time=start.drain_time,
        log=str(records.log_file(agent)) if start.background else None,
        **fields,
    )
    held = None
    try:
        held = await asyncio.to_thread(records.hold, record)
    except SetupError as error:
        if start.background:
            raise
        text = "'kdispatch status' and 'kdispatch agent stop' will not find this agent."
        life.log.warning(f"{error.text} {text}", code=error.code)
    result = {name: value for name, value in dataclasses.asdict(record).items() if name not in _INNER}
    try:
        async with _control(life, held):
            yield result, held
    finally:
        if held is not None:
            await asyncio.to_thread(held.remove)


def _control(life: Life, held: HeldRecord | None) -> contextlib.AbstractAsyncContextManager[object]:
    if held is None:
        return contextlib.nullcontext()
    from kdispatch.machine.control_server import ControlServer  # noqa: PLC0415 - only if an agent runs

    return ControlServer(held.control, held.control_token, {"status": life.status, "stop": life.stop})


async def until_interrupted(life: Life, held: HeldRecord | None, work: list[Coroutine[Any, Any, None]]) -> int:
    """Run until one of ``work`` fails, which is raised, or until the agent is asked to end: then drain and return 0.

    A second request raises ``CancelledError``. The caller must then end the streams.
    """
    import asyncio  # noqa: PLC0415 - help and completion do not need it

    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except asyncio.CancelledError:
        uncancel_current_task()
        try:
            if life.interruption.at_once:
                raise
            await _drain(life, held)
        except asyncio.CancelledError:
            life.log.info(f"Ending at once{_those_reset(life.running)}.")
            raise
    return 0


async def _drain(life: Life, held: HeldRecord | None) -> None:
    import asyncio  # noqa: PLC0415 - help and completion do not need it

    seconds = min(life.start.drain_time, life.interruption.patience)
    driver = life.uplink.driver
    life.take_no_more()
    count = life.running
    if count and seconds:
        which = "the running one" if count == 1 else f"{count} running ones"
        agent = life.start.background
        how = f"'kdispatch agent stop --now {agent}'" if agent else "Ctrl-C again"
        life.log.info(f"Draining: no new connections, {seconds:g} s for {which}; {how} ends at once.")
    life.ends_at = driver.loop.time() + seconds
    if held is not None:
        await asyncio.to_thread(held.draining)
    await driver.drain(seconds)
    left = life.running
    life.log.info(f"Ended{f' after {seconds:g} s' if left and seconds else ''}{_those_reset(left)}.")


def _those_reset(count: int) -> str:
    if not count:
        return ""
    return f": {count} running connection{'s are' if count > 1 else ' is'} reset"
