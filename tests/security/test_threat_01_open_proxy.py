"""Threat 1: the relay as an open proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.wire import frames
from tests.core.conversation import Conversation, open_frame, reset_of
from tests.security.site import Agent, Caller, made, offers, opens, site

#: These are not valid service names, so they violate the protocol and end the session.
_NO_NAMES: Final = (
    "127.0.0.1:22",
    "localhost:22",
    "http://169.254.169.254/latest",
    "ann",
    "ann/",
    "/web",
    "ann/web/..",
    "ann/../bob",
    "ann/web@127.0.0.1",
    "ann@web/web",
    "ann/WEB",
    "ann/wéb",
    "аnn/web",  # noqa: RUF001 - a Cyrillic letter
    "ann/web\u202e",
    "ann/web\x00",
    "ann/web ",
    "ann/" + "w" * 64,
    "[::1]/22",
    "",
)
_NAMES: Final = ("ann/other", "bob/web", "localhost/22", "169-254-169-254/80", "ann/we", "ann/web2")


async def test_only_what_is_registered_is_reached(folder: Path) -> None:
    """For any other service name in a request, no host gets an OPEN; only the registered name reaches its host."""
    async with (
        site(folder) as relay,
        Caller.of(relay) as caller,
        Agent.of(relay, b"\x11" * 32) as host,
        Agent.of(relay, b"\x22" * 32) as client,
    ):
        admin = await caller.admin("ann")
        token = (await made(caller, "/services", admin, name="web", access="public"))["token"]
        assert await offers(host, 1, "ann/web", token) == "OFFERED"
        for number, name in enumerate(_NAMES):
            assert await opens(client, 2 * number + 1, name) == "unknown_service", f"{name} is not refused"
        for number, name in enumerate(_NO_NAMES):
            async with Agent.of(relay, bytes([100 + number]) * 32) as stranger:
                assert await opens(stranger, 1, name) == "protocol_error", name
        assert not host.frames
        assert await opens(client, 99, "ann/web") == "TRYING"
        assert (await host.next(frames.OPEN))[0] == frames.OPEN


@pytest.mark.parametrize("service", ["ann/other", "bob/web", "localhost/22"])
def test_an_agent_serves_what_it_offered(service: str) -> None:
    """A host that is asked for a service it does not offer refuses, and dials nothing."""
    talk = Conversation(offer=True)
    talk.said()
    talk.events()
    talk.hear(open_frame(2, service=service))
    assert not talk.events()
    assert [reset_of(said) for said in talk.said()] == ["unknown_service"]
