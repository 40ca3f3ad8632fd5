from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import Any, Final

import pytest
from aiohttp.test_utils import make_mocked_request

from kdispatch_protocol.errors import CODES
from kdispatch_relay.api import exchange
from kdispatch_relay.gate.handshake import upgrade_headers
from kdispatch_relay.problems import SpoiledError
from tests.relay.support import Api

JSON = {"Content-Type": "application/json"}
CHUNKED = (
    b"POST /api/v1/admins HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)

REFUSED: list[tuple[int, str, str, str, dict[str, Any]]] = [
    (401, "token_refused", "GET", "/api/v1/whoami", {}),
    (401, "token_refused", "GET", "/api/v1/services", {}),
    (404, "unknown_service", "GET", "/api/v1/services/ann/absent", {}),
    (404, "unknown_address", "GET", "/", {}),
    (404, "unknown_address", "GET", "/wp-login.php", {}),
    (404, "unknown_address", "POST", "/api/v1/nothing", {"data": b"x" * 100_000}),
    (405, "wrong_method", "DELETE", "/api/v1/whoami", {}),
    (405, "wrong_method", "PUT", "/healthz", {}),
    (405, "wrong_method", "POST", "/api/v1/tunnel", {}),
    (405, "wrong_method", "DELETE", "/api/v1/services/ann/web/hosts", {}),
    (413, "too_large", "POST", "/api/v1/admins", {"data": b" " * (64 * 1024 + 1), "headers": JSON}),
    (415, "bad_request", "POST", "/api/v1/admins", {"data": b'{"handle": "ann"}'}),
    (415, "bad_request", "POST", "/api/v1/admins", {"data": {"handle": "ann"}}),
    (422, "bad_name", "POST", "/api/v1/admins", {"json": {"handle": "Ann"}}),
    (422, "bad_request", "POST", "/api/v1/admins", {"json": {"name": "ann"}}),
    (
        *(422, "bad_request", "POST", "/api/v1/admins"),
        {"data": gzip.compress(b'{"handle": "ann"}'), "headers": {**JSON, "Content-Encoding": "gzip"}},
    ),
]


@pytest.mark.parametrize(("status", "code", "method", "path", "request_"), REFUSED)
async def test_shape(
    api: Api,
    caplog: pytest.LogCaptureFixture,
    status: int,
    code: str,
    method: str,
    path: str,
    request_: dict[str, Any],
) -> None:
    """Every refusal is a problem of RFC 9457 with a code of the table, and leaves no line in the log."""
    answer = await api(method, path, **request_)
    assert answer.headers["Content-Type"].partition(";")[0] == "application/problem+json"
    assert set(answer.body) == {"type", "title", "status", "code", "detail", "hint", "request_id"}
    assert answer.status == answer.body["status"] == status
    assert answer.body["code"] == code
    assert answer.body["hint"] == CODES[code].hint
    assert all(answer.body.values())
    assert not caplog.records


_UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "kdispatch.1",
}


@pytest.mark.parametrize(
    ("path", "headers", "missing"),
    [
        ("/api/v1/whoami", {}, "Authorization"),
        ("/api/v1/services/ann/absent", {}, "Authorization"),
        ("/api/v1/whoami", {"Authorization": "Bearer adm_none"}, None),
        ("/nothing", {}, None),
    ],
)
async def test_a_token_that_is_missing(api: Api, path: str, headers: dict[str, str], missing: str | None) -> None:
    """A refusal that a token might have changed names the missing header, if the request had no token."""
    answer = await api("GET", path, headers=headers)
    assert answer.headers.get("Kdispatch-Missing") == missing


@pytest.mark.parametrize("left_out", _UPGRADE)
def test_a_header_of_the_upgrade_that_is_missing(left_out: str) -> None:
    """An upgrade without one of the headers is refused with the name of that header."""
    headers = {name: value for name, value in _UPGRADE.items() if name != left_out}
    with pytest.raises(SpoiledError) as caught:
        upgrade_headers(make_mocked_request("GET", "/api/v1/tunnel", headers=headers))
    assert list(caught.value.missing) == [left_out]


def test_an_upgrade_that_has_all() -> None:
    """An upgrade with all headers is answered."""
    assert "Sec-WebSocket-Accept" in upgrade_headers(make_mocked_request("GET", "/api/v1/tunnel", headers=_UPGRADE))


async def test_body_of_64_kib_is_read(api: Api) -> None:
    """The limit of a body is exactly 64 KiB."""
    body = b'{"handle": "ann"}'.ljust(64 * 1024)
    assert (await api("POST", "/api/v1/admins", data=body, headers=JSON)).status == 201


async def test_wrong_method_names_the_right_ones(api: Api) -> None:
    """A 405 lists the methods that the address takes."""
    assert (await api("DELETE", "/api/v1/services")).headers["Allow"] == "GET,HEAD,POST"


async def test_defect(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """After a defect in the relay, the caller gets a request id that is in the log, and no internal details."""
    answer = await api("GET", "/api/v1/tunnel?secret=canary")
    assert (answer.status, answer.body["code"]) == (500, "internal_error")
    assert "canary" not in json.dumps(answer.body)
    assert "ZeroDivision" not in json.dumps(answer.body)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert answer.body["request_id"] in record.getMessage()
    assert "canary" not in record.getMessage()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_not_http(api: Api, caplog: pytest.LogCaptureFixture, sent: bytes) -> None:
    """What is not HTTP is answered with 4xx or disconnected, without a line in the log."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.relay.port)
    writer.write(sent)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_dribbled_body(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive in time is not awaited."""
    monkeypatch.setattr(exchange, "_BODY_TIME", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.relay.port)
    head = "POST /api/v1/admins HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{"
    writer.write(head.encode())
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        await reader.read()  # to the end: the relay disconnects
    writer.close()


async def test_sender_that_leaves(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A sender that disconnects in the middle of its body costs the relay nothing, not even a line in the log."""
    for _ in range(3):
        _, writer = await asyncio.open_connection("127.0.0.1", api.relay.port)
        writer.write(b"POST /api/v1/admins HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 17\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.transport.abort()
    await asyncio.sleep(0.05)
    assert (await api("GET", "/healthz")).status == 200
    assert not caplog.records


async def test_tokens_are_not_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """The log never has a token, accepted or refused, at any level."""
    with caplog.at_level(logging.DEBUG):
        admin = await api.admin("ann")
        service = await api.service(admin)
        mistyped = admin[:-1] + "x"
        for token in (admin, service, mistyped):
            await api("GET", "/api/v1/whoami", token)
            await api("GET", "/api/v1/tunnel", token)
    assert caplog.records
    for token in (admin, service, mistyped):
        assert token[4:40] not in caplog.text
