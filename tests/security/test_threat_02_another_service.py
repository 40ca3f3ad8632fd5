"""Threat 2: access after revocation, or to another service on an open session."""

from __future__ import annotations

from pathlib import Path

from tests.security.site import Agent, Caller, carried, made, offers, opens, site


async def test_each_offer_and_open_is_authorised(folder: Path) -> None:
    """A token for one service gives a session no other service, and after its revocation no service at all."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin("ann")
        one = (await made(caller, "/services", admin, name="one", access="token"))["token"]
        two = (await made(caller, "/services", admin, name="two", access="token"))["token"]
        cli = await made(caller, "/tokens", admin, name="c", **{"for": "connect", "service": "one"})
        assert await offers(host, 1, "ann/one", one) == "OFFERED"
        assert await offers(host, 3, "ann/two", two) == "OFFERED"
        await carried(client, host, 1, "ann/one", cli["token"])
        assert await opens(client, 3, "ann/two", cli["token"]) == "unknown_service"
        assert await opens(client, 5, "ann/two") == "unknown_service"
        assert await offers(client, 7, "ann/two", one) == "not_permitted"
        assert await offers(client, 9, "ann/one", cli["token"]) == "not_permitted"
        assert await opens(client, 11, "ann/one", one) == "unknown_service"  # may host, not connect
        assert (await caller("DELETE", f"/api/v1/tokens/{cli['id']}", admin)).status == 204
        assert await opens(client, 13, "ann/one", cli["token"]) == "revoked"
