from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial

import pytest
from aiohttp import web

from kdispatch.rest.client import (
    AcceptedInvite,
    CreatedInvite,
    CreatedService,
    CreatedToken,
    HostInfo,
    Identity,
    RestClient,
    RotatedService,
    ServiceInfo,
    SignedUp,
)
from kdispatch_protocol.errors import KdispatchError
from tests.agent.cli.fake_relay import FakeRelay, new_token, problem


@pytest.fixture
async def client(relay: FakeRelay) -> AsyncIterator[RestClient]:
    async with RestClient(relay.url, token=new_token("adm")) as client:
        yield client


async def failure(client: RestClient) -> KdispatchError:
    with pytest.raises(KdispatchError) as caught:
        await client.whoami()
    return caught.value


async def test_a_first_day(relay: FakeRelay, client: RestClient) -> None:
    """Sign up, create, list, show, hosts and whoami return typed results, and the token is only in its header."""
    client.token = None
    ann = await client.sign_up("ann")
    client.token = ann.token
    assert await client.whoami() == Identity("adm", "ann")
    web_service = await client.create_service("web")
    assert (web_service.service, web_service.access, web_service.pins) == ("ann/web", "public", False)
    relay.hosts["ann/web"] = [{"host": "h1", "since": "2026-01-01T00:00:00Z", "labels": {"a": "b"}, "streams": 2}]
    assert await client.services() == (ServiceInfo("ann/web", "public", 1),)
    assert await client.service("ann/web") == ServiceInfo("ann/web", "public", 1)
    assert await client.hosts("ann/web") == (HostInfo("h1", datetime(2026, 1, 1, tzinfo=UTC), {"a": "b"}, 2),)
    assert {token for _, _, token in relay.seen} == {None, f"Bearer {ann.token}"}


async def test_what_is_removed_is_gone(relay: FakeRelay, client: RestClient) -> None:
    """Deleting and withdrawing return nothing; a second time, the code says what is missing."""
    client.token = (await client.sign_up("ann")).token
    await client.create_service("web")
    relay.hosts["ann/web"] = [{"host": "0f0f", "since": "2026-01-01T00:00:00Z", "labels": {}, "streams": 0}]
    await client.withdraw_host("0f0f")
    with pytest.raises(KdispatchError, match="unknown_host"):
        await client.withdraw_host("0f0f")
    await client.delete_service("ann/web")
    with pytest.raises(KdispatchError, match="unknown_service"):
        await client.delete_service("ann/web")
    assert relay.services == {}


async def test_a_wrong_name_is_never_sent(relay: FakeRelay, client: RestClient) -> None:
    """An invalid name is refused before it becomes part of an address."""
    for service in ("ann", "ann/../bob", "ann/web?x", "Ann/web"):
        with pytest.raises(KdispatchError, match="bad_name"):
            await client.service(service)
    with pytest.raises(KdispatchError, match="bad_name"):
        await client.sign_up("a b")
    for wrong in ("../services/ann/web", "", "0f?x", "0F"):
        for call in (client.withdraw_host, client.revoke_token, partial(client.revoke_invite, "ann/web")):
            with pytest.raises(KdispatchError, match="bad_request"):
                await call(wrong)
    assert relay.seen == []


async def test_it_is_used_in_a_block(relay: FakeRelay) -> None:
    """Outside of 'async with' a call raises an error about that, and sends nothing."""
    with pytest.raises(RuntimeError, match="async with"):
        await RestClient(relay.url).service("ann/web")
    assert relay.seen == []


def test_no_answer_shows_its_secret() -> None:
    """The log of an answer with a token has the rest of it only."""
    secret = new_token("adm")
    when = datetime(2026, 1, 1, tzinfo=UTC)
    for answer in (
        SignedUp("ann", secret),
        CreatedService("ann/web", "public", pins=False, token=secret),
        RotatedService("ann/web", "0f", None, secret),
        CreatedToken("0f", "adm", "n", when, None, None, secret),
        CreatedInvite(
            id="0f",
            purpose="host",
            name="n",
            uses=1,
            used=0,
            created=when,
            expires=when,
            service="ann/web",
            code=secret,
        ),
        AcceptedInvite("ann/web", "host", "svc", "0f", "n", secret),
    ):
        assert secret not in repr(answer)


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (problem("revoked", 401, "Gone since noon."), "revoked", "Gone since noon."),
        (problem("revoked", 401), "revoked", "The right behind this access was revoked."),
        (problem("internal_error", 500, "Oh."), "internal_error", "Oh. Request id: r1."),
        (problem("of_tomorrow", 401, "New."), "token_refused", "New. (The relay calls it 'of_tomorrow'.)"),
        (problem("of_tomorrow", 404), "unknown_service", "of_tomorrow"),
        (problem("of_tomorrow", 418), "bad_request", "of_tomorrow"),
        (problem("of_tomorrow", 502), "internal_error", "of_tomorrow"),
    ],
)
async def test_a_problem_keeps_its_code_and_text(
    relay: FakeRelay, client: RestClient, answer: web.Response, code: str, says: str
) -> None:
    """A relay's problem is raised with its code, and an unknown code with the meaning of its status."""

    async def refuse(request: web.Request) -> web.Response:
        return answer

    relay.instead = refuse
    error = await failure(client)
    assert error.code == code
    assert says in error.text


async def test_the_wait_that_the_relay_asks_for_is_told(relay: FakeRelay, client: RestClient) -> None:
    """Retry-After is part of the text of rate_limited."""

    async def refuse(request: web.Request) -> web.Response:
        answer = problem("rate_limited", 429, "Slowly.")
        answer.headers["Retry-After"] = "17"
        return answer

    relay.instead = refuse
    assert (await failure(client)).text == "Slowly. The relay asks to wait 17 s."


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, "<html>Welcome</html>", "captive_portal"),
        (404, "<html>Not found</html>", "not_a_relay"),
        (401, '{"error": "who?"}', "not_a_relay"),
        (200, '{"kind": "adm"}', "not_a_relay"),
        (200, '{"kind": "adm", "handle": 7}', "not_a_relay"),
        (200, "[1]", "captive_portal"),
        (200, "[" * 100_000, "captive_portal"),
        (404, '{"code": 404}', "not_a_relay"),
        (407, "", "proxy_auth"),
        (429, "slow", "rate_limited"),
        (500, "<html>Oops</html>", "relay_unreachable"),
        (502, "<html>Bad gateway</html>", "relay_unreachable"),
        (511, "", "captive_portal"),
    ],
)
async def test_what_answers_in_a_relays_place_is_told_apart(
    relay: FakeRelay, client: RestClient, status: int, body: str, code: str
) -> None:
    """An answer without one of our codes is never taken for a relay's."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="text/html")

    relay.instead = answer
    assert (await failure(client)).code == code


async def test_no_redirect_is_followed(relay: FakeRelay, client: RestClient) -> None:
    """A redirect ends the call, so that no token reaches another origin."""
    other = FakeRelay()
    runner = await other.start()

    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{other.url}{request.path}"})

    relay.instead = redirect
    error = await failure(client)
    await runner.cleanup()
    assert (error.code, other.url in error.text, other.seen) == ("not_a_relay", True, [])


async def test_an_endless_answer_is_cut(relay: FakeRelay, client: RestClient) -> None:
    """An answer above the bound is refused, compressed or not."""

    async def flood(request: web.Request) -> web.Response:
        answer = web.Response(text=json.dumps({"kind": "adm", "handle": "x" * 5_000_000}))
        answer.enable_compression(web.ContentCoding.gzip)
        return answer

    relay.instead = flood
    error = await failure(client)
    assert error.code == "not_a_relay" and "it answers with status 200 and text/plain" in error.text


async def test_a_closed_port_is_named() -> None:
    """A refused connection names host, port and cause."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with RestClient(f"http://127.0.0.1:{port}") as client:
            error = await failure(client)
    assert error.code == "relay_unreachable"
    assert error.text == f"127.0.0.1:{port} can't be reached: connection refused."


async def test_a_name_that_does_not_resolve_is_named() -> None:
    """A name that does not exist is relay_unreachable, and the text says that it is the name."""
    async with RestClient("https://relay.invalid") as client:
        error = await failure(client)
    assert error.code == "relay_unreachable"
    assert error.text.startswith("relay.invalid:443 can't be reached: the name cannot be resolved")


@pytest.mark.parametrize(
    ("speaks", "scheme", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", "http", "not_a_relay"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "https", "not_a_relay"),
        (b"", "http", "relay_unreachable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "http", "relay_unreachable"),
    ],
)
async def test_what_speaks_no_http_is_no_relay(speaks: bytes, scheme: str, code: str) -> None:
    """Another protocol is not_a_relay, and a connection that ends early is relay_unreachable."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(speaks)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with (
        server,
        RestClient(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}") as c,
    ):
        assert (await failure(c)).code == code


async def test_a_silent_relay_is_given_up(monkeypatch: pytest.MonkeyPatch, relay: FakeRelay) -> None:
    """No answer within the total time is relay_unreachable, with the time that was waited."""
    monkeypatch.setattr("kdispatch.rest.client.TOTAL_SECONDS", 0.1)
    over = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    relay.instead = wait
    async with RestClient(relay.url) as client:
        error = await failure(client)
    over.set()
    assert (error.code, error.text.partition(": ")[2]) == ("relay_unreachable", "no answer within 0.1 s.")


@pytest.mark.parametrize(("status", "code"), [(200, "not_a_relay"), (204, ""), (404, "not_a_relay")])
async def test_only_204_is_done(relay: FakeRelay, client: RestClient, status: int, code: str) -> None:
    """Only 204 counts as the answer to a deletion, and 204 never counts as data."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=None if status == 204 else '{"ok": true}')

    relay.instead = answer
    if code:
        with pytest.raises(KdispatchError, match=code):
            await client.delete_service("ann/web")
    else:
        await client.delete_service("ann/web")
    assert (await failure(client)).code == "not_a_relay"
