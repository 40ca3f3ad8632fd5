"""Programs in the middle of their work, while the relay is killed and restarted several times."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import pytest

from tests.net.harness import Network, Relay, needs, sizes
from tests.programs.install import find
from tests.programs.running import Copies, Counter, Running, Subscription, Transaction
from tests.programs.servers import Ssh, postgres
from tests.programs.tunnel import KB, MB, tunnel

pytestmark = [
    pytest.mark.slow,
    needs("ssh", "ssh-keygen", find("sshd"), "rsync", "diff"),
    needs(find("initdb"), find("postgres"), find("psql"), find("redis-server"), "redis-cli"),
]


@pytest.mark.parametrize("plan", sizes((1, 3 * MB, 2 * MB), (10, 15 * MB, 500 * KB)))
async def test_programs_outlive_relays(
    network: Network, own_relay: Relay, tmp_path: Path, plan: tuple[int, int, int]
) -> None:
    """ssh, psql, redis-cli and rsync continue after each kill -9 of the relay, and their output is complete."""
    restarts, *load = plan
    async with postgres(network) as database, asyncio.TaskGroup() as group:
        ssh = Ssh(network, tmp_path)
        port = await tunnel(network, await ssh.serve())
        ssh.knows(port, ssh.host_key)
        programs: tuple[Running, ...] = await asyncio.gather(
            Counter.start(network, ssh, port, tmp_path / "counted"),
            Transaction.start(network, database, tmp_path),
            Subscription.start(network, group, tmp_path),
            Copies.start(network, group, ssh, port, tmp_path, *load),
        )
        for number in range(restarts):
            own_relay.stop(signal.SIGKILL)
            await asyncio.sleep(random.uniform(0, 0.5))
            await own_relay.start()
            there = time.monotonic()
            await asyncio.gather(*(program.goes_on() for program in programs))
            print(f"\nrestart {number + 1}: all programs go on after {time.monotonic() - there:.1f} s", end="")
            if number + 1 < restarts:
                await asyncio.sleep(random.uniform(0, 1))
        print()
        for program in programs:
            print(await program.finish())
