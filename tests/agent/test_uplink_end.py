"""An uplink that ends leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib

from kdispatch import uplink as uplink_module
from kdispatch.network.dialer import Dialer
from kdispatch.network.upgrade import Refusal
from kdispatch.uplink import Uplink
from tests.aio.twin import SCALED, running_gate
from tests.guards.systems import tasks


async def test_no_task_is_left() -> None:
    """When the loop ends, and with it the task that keeps the session, the uplink leaves no task."""
    async with running_gate() as relay:
        before = tasks()
        uplink = Uplink(Dialer(relay.url), lambda _: None, limits=SCALED)
        await uplink.start(2)
        await asyncio.sleep(0.01)  # it waits for the end of its session
        assert uplink._task is not None
        waits = tasks() - before - {uplink._task}
        uplink._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await uplink._task
        await asyncio.sleep(0)  # cancelled tasks end
        assert all(task.done() for task in waits)
        await uplink.stop()


def test_a_name_that_a_relay_no_longer_takes() -> None:
    """A relay that refuses the name in its URL ends a first start, but not an agent that was connected with it."""
    refused = Refusal("misdirected", "", final=True)
    assert uplink_module._is_final(refused, connected_before=False)
    assert not uplink_module._is_final(refused, connected_before=True)
    assert uplink_module._is_final(Refusal("revoked", "", final=True), connected_before=True)


def test_a_box_that_takes_the_upgrade_away() -> None:
    """A relay's answer to a request that a box has changed does not end an agent that was connected."""
    for code in ("bad_request", "unknown_address"):
        refused = Refusal(code, "", final=True)
        assert uplink_module._is_final(refused, connected_before=False)
        assert not uplink_module._is_final(refused, connected_before=True)
