"""A driver without a session."""

from __future__ import annotations

from tests.aio.twin import twin


async def test_streams_without_a_session_end_in_time() -> None:
    """A stream whose session is lost is reset when its grace is over, even if nothing else happens meanwhile."""
    async with twin() as pair:
        client, host = await pair.stream()
        pair.client.abort()
        assert (await client.code(), await host.code()) == ("resume_expired", "resume_expired")
