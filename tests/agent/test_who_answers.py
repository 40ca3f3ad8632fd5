"""Agents, commands and doctor report a server in a relay's place in the same way, whatever is wrong with it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Final

import pytest

from kdispatch.network.answers import strange
from kdispatch.network.asking import HttpAnswer, ask
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.errors import KdispatchError
from tests.agent.cli.test_service_query import both, chunked, http, problem, says, server

_PAGE: Final = "A web page answers instead of a relay (200)"
_JSON: Final = "it answers with status 200 and application/json"
_TYPED: Final = ("Content-Type: application/json", "Content-Encoding: gzip")
_HTML: Final = "Content-Type: text/html"
_BUSY: Final = json.dumps({"code": "busy", "detail": "No room."}).encode()
_STRANGERS: Final = {
    "json": (http("200 OK", b'{"ok": true}', "Content-Type: application/json"), "not_a_relay", _JSON),
    "packed": (http("200 OK", gzip.compress(b'{"ok": true}'), *_TYPED), "not_a_relay", _JSON),
    "said to be packed": (http("200 OK", b'{"ok": true}', *_TYPED), "not_a_relay", _JSON),
    "a yes with a code": (http("200 OK", gzip.compress(_BUSY), *_TYPED), "not_a_relay", _JSON),
    "two lengths": (http("200 OK", b"<html>", _HTML, "Content-Length: 9"), "captive_portal", _PAGE),
    "two lengths in one": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5, 9\r\n\r\n<html>",
        "captive_portal",
        _PAGE,
    ),
    "no length": (
        b"HTTP/1.1 404 No\r\nContent-Type: text/html\r\nContent-Length: -3\r\n\r\n<html>",
        "not_a_relay",
        "it answers with status 404 and text/html",
    ),
    "a large page": (http("200 OK", b"x" * (3 << 19), _HTML), "captive_portal", _PAGE),
    "a larger page": (http("200 OK", b"x" * (5 << 20), _HTML), "captive_portal", _PAGE),
    "a large refusal": (http("403 No", b"x" * (3 << 19), _HTML), "not_a_relay", "status 403 and text/html"),
}


async def _asked(url: RelayUrl) -> HttpAnswer:
    async def connect(make: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        return (await asyncio.get_running_loop().create_connection(make, url.host, url.port))[0]

    return await ask(url, connect)


async def _told(url: RelayUrl) -> list[tuple[str, str]]:
    """Code and text of an agent's session, of its query, of a command, and of doctor."""
    with pytest.raises(KdispatchError) as caught:
        await Dialer(url).upgrade()
    answer = await _asked(url)
    assert answer.code is None
    told = strange(url, answer.status, answer.headers)
    return [(caught.value.code, caught.value.text), *await both(url), (told.code, told.text)]


@pytest.mark.slow
@pytest.mark.parametrize("case", _STRANGERS)
async def test_strangers(case: str) -> None:
    """Code and sentence are the same everywhere, and say what is there."""
    answer, code, words = _STRANGERS[case]
    async with server(says(answer)) as url:
        told = await _told(url)
    assert len(set(told)) == 1, told
    assert told[0][0] == code and words in told[0][1]


@pytest.mark.parametrize(
    "answer",
    [
        http("503 Busy", gzip.compress(_BUSY), *_TYPED),
        problem("503 Busy", "busy", "Content-Length: 9"),
        http("503 Busy", chunked(gzip.compress(_BUSY)), *_TYPED, "Transfer-Encoding: chunked"),
    ],
    ids=["packed", "two lengths", "packed in chunks"],
)
async def test_the_relays_own_refusal(answer: bytes) -> None:
    """A relay's refusal is recognised even if something on the way has changed its form."""
    async with server(says(answer)) as url:
        with pytest.raises(KdispatchError) as caught:
            await Dialer(url).upgrade()
        found = [caught.value.code, (await _asked(url)).code]
        found += [code for code, _ in await both(url)]
    assert found == ["busy"] * 4
