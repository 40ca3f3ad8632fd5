"""Offers of one process by several tokens, through the REST API and real sockets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Reset
from tests.aio.twin import until
from tests.relay.test_gate import _Agent
from tests.relay.test_limits import Caller, site

WEB = "/api/v1/services/ann/web"


@pytest.fixture(autouse=True)
def database(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "relay.db")


async def test_a_host_without_a_token_left_is_gone(tmp_path: Path) -> None:
    """Each revoked token ends its own offer; with the last one the host is not listed and cannot be withdrawn."""
    async with site(tmp_path) as relay, Caller.of(relay) as caller:
        ann = await caller.admin()
        await caller("POST", "/api/v1/services", ann, json={"name": "web"})
        wanted = {"name": "x", "for": "host", "service": "web"}
        tokens = [(await caller("POST", "/api/v1/tokens", ann, json=wanted)).body for _ in range(2)]

        async def listed() -> list[str]:
            return [host["host"] for host in (await caller("GET", f"{WEB}/hosts")).body["hosts"]]

        async with _Agent.of(relay) as host:
            id_ = host_id(host.process, "ann/web")
            for number, token in zip((1, 3), tokens, strict=True):
                offer = Offer(service="ann/web", host=id_, digest="00" * 32, token=token["token"])
                host.send(frame(frames.OFFER, number, payload=offer.encode()))
                await host.next(frames.OFFERED)
            for number, token, left in zip((1, 3), tokens, ([id_], []), strict=True):
                assert (await caller("DELETE", f"/api/v1/tokens/{token['id']}", ann)).status == 204
                _, _, reset, _, payload = await host.next(frames.RESET)
                assert (reset, Reset.parse(payload).code) == (number, "revoked")
                assert await listed() == left
        await until(lambda: relay.relay.gate.state().sessions == 0)
        answer = await caller("DELETE", f"/api/v1/hosts/{id_}", ann)
        assert (answer.status, answer.body["code"]) == (404, "unknown_host") and await listed() == []
