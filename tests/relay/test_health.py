from __future__ import annotations

import asyncio

from tests.relay.support import Api


async def test_alive_and_ready(api: Api) -> None:
    """A healthy relay says so, and nothing else."""
    assert (await api("GET", "/healthz")).body == {"status": "ok"}
    assert (await api("GET", "/readyz")).body == {"status": "ready"}


async def test_head(api: Api) -> None:
    """Monitors may ask with HEAD."""
    for path in ("/healthz", "/readyz"):
        async with api.http.head(path) as response:
            assert response.status == 200


async def test_readiness_is_cheap(api: Api) -> None:
    """However many ask at once whether the relay is ready, the database is probed once."""
    database = api.relay.authority.repository.database
    asked = 0
    probe = database.probe

    async def counted(often: float) -> None:
        nonlocal asked
        asked += 1
        await probe(often)

    database.probe = counted  # type: ignore[method-assign]  # to count
    answers = await asyncio.gather(*(api("GET", "/readyz") for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    assert asked == 1


async def test_gate_lives_as_long_as_the_app(api: Api) -> None:
    """The switch is started before the first request, and the tunnel's address leads to it."""
    assert api.gate.calls == ["start"]
    await api("GET", "/api/v1/tunnel")
    assert api.gate.calls == ["start", "handle"]
