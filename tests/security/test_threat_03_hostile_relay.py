"""Threat 3: a hostile relay makes an agent dial into its LAN."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.first_minutes.watch import token_of
from tests.net.harness import Network, eventually
from tests.net.tcp import Tcp, echo, service
from tests.security.hostile_relay import hostile_relay


@pytest.mark.slow
async def test_only_the_configured_target_is_dialled(tmp_path: Path) -> None:
    """Whatever target a relay names, and in whatever form, a host dials only its configured target."""
    async with hostile_relay() as relay, service(echo) as target, service(echo) as neighbour:
        network = Network(tmp_path, f"http://127.0.0.1:{relay.port}", token_of("svc", 1))
        host = network.agent("host", "host", "ann/web", "--port", str(target.port))
        try:
            await host.says("is offered as")
            before = target.accepted
            base: dict[str, object] = {"limit": 1 << 18, "attempt": 1, "process": "55" * 16, "key": "66" * 32}
            elsewhere: dict[str, object] = {
                "host": "127.0.0.1",
                "address": "127.0.0.1",
                "port": neighbour.port,
                "target": neighbour.port,
            }
            asked: list[dict[str, object]] = [
                {"service": "ann/other"},
                {"service": "localhost/22"},
                {"service": "ann/other", **elsewhere},
                {"service": "ann/web", **elsewhere, "local_port": neighbour.port},
            ]
            for number, content in enumerate(asked, 1):
                await relay.ask(2 * number, {**base, **content, "uuid": f"{number:032x}"})
            await eventually(lambda: len(relay.answers), len(asked))
            assert list(relay.answers.values()) == [*["unknown_service"] * 3, "OPENED"], relay.answers
            for program in (target, neighbour):  # accepts in order: when ours is answered, all others are counted
                async with await Tcp.connect(program.port) as last:
                    await last.send(b"x")
                    assert await last.receive_exactly(1) == b"x"
            assert (target.accepted - before, neighbour.accepted) == (2, 1), "one by the agent, and ours"
        finally:
            network.stop()
