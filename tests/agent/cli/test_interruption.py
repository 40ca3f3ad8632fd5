"""Requests to end a command, and the time that running work still has."""

from __future__ import annotations

import asyncio
import math

import pytest

from kdispatch.cli.interruption import Interruption
from kdispatch.machine.operating_system import HERE


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[Interruption, asyncio.Task[None]]:
    """The interruption of an agent that counts how often it is asked."""
    monkeypatch.setattr(type(HERE), "on_stop", lambda *_: None)

    async def wait() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    interruption = Interruption(drains=True)
    interruption.watch(asyncio.get_running_loop(), task)
    return interruption, task


async def test_a_system_that_ends_the_process(watched: tuple[Interruption, asyncio.Task[None]]) -> None:
    """A system that soon ends the process bounds the drain, and a second such request changes nothing."""
    interruption, task = watched
    assert interruption.patience == math.inf
    interruption.hurry(21, 2.0)
    assert (interruption.patience, interruption.at_once, interruption.status) == (2.0, False, 149)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_system_that_ends_a_drain(
    watched: tuple[Interruption, asyncio.Task[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that drains already ends at once when the system is about to end the process."""
    interruption, task = watched
    monkeypatch.setattr("kdispatch.cli.interruption._exit", lambda status: pytest.fail(f"{status}"))
    interruption.ask(2)
    assert (interruption.patience, interruption.at_once) == (math.inf, False)
    interruption.hurry(21, 2.0)
    interruption.hurry(21, 2.0)
    assert (interruption.at_once, interruption.status) == (True, 149)
    with pytest.raises(asyncio.CancelledError):
        await task
