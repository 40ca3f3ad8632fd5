"""Threat 7: guessing names or tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Reset
from tests.net.harness import sizes
from tests.relay.support import Answer
from tests.security.site import Agent, Caller, made, opens, site


def _all_but_the_id(answer: Answer) -> tuple[int, dict[str, str], dict[str, Any]]:
    """The answer without the request's id and the clock."""
    headers = {name: value for name, value in answer.headers.items() if name != "Date"}
    return answer.status, headers, {key: value for key, value in answer.body.items() if key != "request_id"}


async def test_no_such_and_not_yours_are_the_same(folder: Path) -> None:
    """Reads and OPENs without the right get the same answer as for a service that does not exist."""
    async with site(folder) as relay, Caller.of(relay) as caller, Agent.of(relay) as agent:
        ann, bob = await caller.admin("ann"), await caller.admin("bob")
        await made(caller, "/services", ann, name="web", access="token")
        cli = await made(caller, "/services", bob, name="own", access="token")
        for token in (None, bob, cli["token"]):
            for rest in ("", "/hosts"):
                yes = await caller("GET", f"/api/v1/services/ann/web{rest}", token)
                no = await caller("GET", f"/api/v1/services/ann/non{rest}", token)
                assert _all_but_the_id(yes) == _all_but_the_id(no)
                assert yes.status == 404
        told = []
        for number, (service, token) in enumerate((s, t) for s in ("web", "non") for t in (None, bob, cli["token"])):
            agent.frames.clear()
            assert await opens(agent, 2 * number + 1, f"ann/{service}", token) == "unknown_service"
        for number, service in ((21, "ann/web"), (23, "ann/non")):
            agent.open(number)
            _, flags, _, value, payload = await agent.next(frames.RESET)
            told.append((flags, value, bytes(payload), service[:3]))
        assert told[0] == told[1] and Reset.parse(told[0][2]).code == "unknown_service"


@pytest.mark.parametrize("count", sizes(60, 1000))
async def test_bad_tokens_of_one_source(folder: Path, count: int) -> None:
    """After nine bad tokens the relay stops looking up that source's tokens and returns 429; other sources work."""
    async with (
        site(folder, limit_bad_tokens=10) as relay,
        Caller.of(relay) as bad,
        Caller.of(relay, "127.0.0.2") as good,
    ):
        admin = await good.admin()
        seen = Counter(await bad.bad(count))
        assert seen[401] <= 12 and seen[401] + seen[429] == count, seen
        answer = await bad("GET", "/api/v1/whoami", "adm_guess")
        assert answer.status == 429 and int(answer.headers["Retry-After"]) >= 1
        assert relay.looked_up <= 12
        assert await good.statuses(5, token=admin) == [200] * 5
