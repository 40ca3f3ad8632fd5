"""Rate limits: each at its cap and one beyond, on real sockets."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.tokens import SECRET_BYTES, format_token
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Frame, frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Open, Reset
from kdispatch_relay.server import RunningRelay
from kdispatch_relay.settings import LIMITS
from tests.aio.twin import until
from tests.relay.support import Answer
from tests.relay.test_door import relay_with
from tests.relay.test_gate import _UPGRADE, HasPort, _Agent, _request

NONE = dict.fromkeys(LIMITS, 0)
WHOAMI = "/api/v1/whoami"


@pytest.fixture(autouse=True)
def database(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "relay.db")


class Site:
    """One relay, with a count of looked-up tokens."""

    def __init__(self, relay: RunningRelay) -> None:
        self.relay = relay
        self.port = relay.port
        self.looked_up = 0
        repository = relay.authority.repository
        identity = repository.identity

        async def counting(digest: bytes) -> Any:
            self.looked_up += 1
            return await identity(digest)

        repository.identity = counting  # type: ignore[method-assign]  # the real one, counted

    @property
    def limited(self) -> Counter[str]:
        return self.relay.limiter.limited


@asynccontextmanager
async def site(folder: Path, **limits: Any) -> AsyncIterator[Site]:
    """A relay with these limits and no others."""
    async with relay_with(folder, DEFAULT_LIMITS, **{**NONE, **limits}) as relay:
        yield Site(relay)


class Caller:
    """Sends requests from one address."""

    def __init__(self, port: int, http: aiohttp.ClientSession) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._http = http

    @classmethod
    @asynccontextmanager
    async def of(cls, where: HasPort, address: str = "127.0.0.1") -> AsyncIterator[Caller]:
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with aiohttp.ClientSession(connector=connector) as http:
            yield cls(where.port, http)

    async def __call__(self, method: str, path: str, token: str | None = None, **request: Any) -> Answer:
        headers = dict(request.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self._http.request(method, self._url + path, headers=headers, **request) as response:
            return Answer(response.status, response.headers, await response.json(content_type=None))

    async def statuses(self, count: int, path: str = WHOAMI, token: str | None = None, **more: Any) -> list[int]:
        """Send one request after the other."""
        return [(await self("GET", path, token, **more)).status for _ in range(count)]

    async def bad(self, count: int, **more: Any) -> list[int]:
        """Show this many tokens that the relay has never seen."""
        return [(await self("GET", WHOAMI, unknown_token(), **more)).status for _ in range(count)]

    async def admin(self, handle: str = "ann") -> str:
        answer = await self("POST", "/api/v1/admins", json={"handle": handle})
        assert answer.status == 201, answer.body
        return str(answer.body["token"])


def unknown_token() -> str:
    return format_token("adm", secrets.token_bytes(SECRET_BYTES))


# --- tokens that are not valid ------------------------------------------------------------------


async def test_the_tenth_bad_token(tmp_path: Path) -> None:
    """Nine unknown tokens are looked up and refused; the tenth is not looked up, for 6 s."""
    async with site(tmp_path, limit_bad_tokens=10) as relay, Caller.of(relay) as caller:
        assert await caller.bad(9) == [401] * 9
        assert relay.looked_up == 9
        answer = await caller("GET", WHOAMI, unknown_token())
        assert (answer.status, answer.body["code"], answer.headers["Retry-After"]) == (429, "rate_limited", "6")
        assert "try again in 6 s" in answer.body["detail"]
        assert (relay.looked_up, relay.limited) == (9, {"bad_tokens": 1})


@pytest.mark.parametrize("token", ["adm_short", "", "nonsense"])
async def test_malformed_tokens_count(tmp_path: Path, token: str) -> None:
    """A malformed token counts as much as an unknown one."""
    async with site(tmp_path, limit_bad_tokens=3) as relay, Caller.of(relay) as caller:
        assert await caller.statuses(3, token=token) == [401, 401, 429]


async def test_no_token_is_no_bad_one(tmp_path: Path) -> None:
    """A request that needs a token and has none does not count as a bad token, and is answered as usual."""
    async with site(tmp_path, limit_bad_tokens=2) as relay, Caller.of(relay) as caller:
        assert await caller.statuses(4) == [401] * 4
        assert await caller.bad(2) == [401, 429]
        assert await caller.statuses(1) == [401]


async def test_many_bad_tokens_at_once(tmp_path: Path) -> None:
    """However many bad tokens come at the same moment, nine are answered as wrong."""
    async with site(tmp_path, limit_bad_tokens=10) as relay, Caller.of(relay) as caller:
        answers = await asyncio.gather(*(caller.bad(1) for _ in range(40)))
        assert Counter(status for (status,) in answers) == {401: 9, 429: 31}


async def test_whoever_was_known_goes_on(tmp_path: Path) -> None:
    """Bad tokens from a source lock out neither recently valid tokens from there nor other sources."""
    async with (
        site(tmp_path, limit_bad_tokens=10) as relay,
        Caller.of(relay) as caller,
        Caller.of(relay, "127.0.0.2") as elsewhere,
    ):
        known, new = await caller.admin("ann"), await caller.admin("bob")
        assert await caller.statuses(1, token=known) == [200]
        assert (await caller.bad(12))[-1] == 429
        assert await caller.statuses(2, token=known) == [200, 200]
        assert await caller.statuses(1, token=new) == [429]
        assert await elsewhere.statuses(1, token=new) == [200]
        assert await caller.statuses(1, token=new) == [200]  # known by now
        assert await elsewhere.bad(1) == [401]


@pytest.mark.slow
async def test_right_after_retry_after(tmp_path: Path) -> None:
    """After the seconds that Retry-After states, the next token is looked up."""
    async with site(tmp_path, limit_bad_tokens=60) as relay, Caller.of(relay) as caller:
        while (answer := await caller("GET", WHOAMI, unknown_token())).status == 401:
            pass
        assert answer.headers["Retry-After"] == "1"
        await asyncio.sleep(1)
        assert await caller.bad(2) == [401, 429]


async def test_state_and_hosts_need_no_look_up(tmp_path: Path) -> None:
    """The operator's token, and a host's own, are compared in memory, so that bad tokens cannot lock them out."""
    file = tmp_path / "operator.token"
    file.touch(0o600)
    file.write_text("5f" * 20)
    async with site(tmp_path, limit_bad_tokens=2, operator_token_file=file) as relay, Caller.of(relay) as caller:
        assert await caller.bad(2) == [401, 429]
        assert await caller.statuses(1, "/api/v1/relay/state", "5f" * 20) == [200]
        token = format_token("hst", secrets.token_bytes(SECRET_BYTES))
        assert (await caller("DELETE", f"/api/v1/hosts/{'00' * 16}", token)).body["code"] == "unknown_host"


# --- requests and sign-ups ----------------------------------------------------------------------


async def test_requests_of_a_source(tmp_path: Path) -> None:
    """One source has a burst of requests; other sources, and health, are still answered."""
    async with site(tmp_path, limit_requests=2) as relay, Caller.of(relay) as caller:
        assert await caller.statuses(9) == [401] * 8 + [429]
        assert await caller.statuses(3, "/healthz") == [200] * 3
        async with Caller.of(relay, "127.0.0.2") as elsewhere:
            assert await elsewhere.statuses(1) == [401]
        assert relay.limited == {"requests": 1}


async def test_requests_with_a_token(tmp_path: Path) -> None:
    """One token has a burst of requests, over all sources."""
    async with site(tmp_path, limit_requests=2) as relay, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(Caller.of(relay, f"127.0.0.{last}")) for last in (1, 2, 3)]
        token = await callers[0].admin()
        statuses = [await caller.statuses(3, token=token) for caller in callers]
        assert statuses == [[200] * 3, [200] * 3, [200, 200, 429]]
        assert relay.limited == {"token_requests": 1}


async def test_sign_ups(tmp_path: Path) -> None:
    """A source may take a number of handles in an hour; failed attempts do not count."""
    async with site(tmp_path, limit_sign_ups=3) as relay, Caller.of(relay) as caller:
        await caller.admin("a0")
        for body in ({"handle": "a0"}, {"handle": "-"}, {}, {"handle": "a0"}):
            assert (await caller("POST", "/api/v1/admins", json=body)).status in {409, 422}
        await caller.admin("a1")
        await caller.admin("a2")
        answer = await caller("POST", "/api/v1/admins", json={"handle": "a3"})
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1200")
        async with Caller.of(relay, "127.0.0.2") as elsewhere:
            await elsewhere.admin("a3")


async def test_many_sign_ups_at_once(tmp_path: Path) -> None:
    """Sign-ups at the same moment do not exceed the limit."""
    async with site(tmp_path, limit_sign_ups=3) as relay, Caller.of(relay) as caller:
        asked = (caller("POST", "/api/v1/admins", json={"handle": f"a{number}"}) for number in range(20))
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status for answer in answers) == {201: 3, 429: 17}


# --- sessions -------------------------------------------------------------------------------------


async def refusal(port: int, address: str = "127.0.0.1") -> str:
    """The head of the answer to an upgrade."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    writer.write(_request(_UPGRADE))
    head = await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    return head.decode()


async def test_sessions_of_a_source(tmp_path: Path) -> None:
    """A source has a number of sessions, with or without HELLO; one that ends makes room for another."""
    async with site(tmp_path, limit_source_sessions=2) as relay:
        await sessions_at_their_cap(relay, "source_sessions")
        assert (await refusal(relay.port, "127.0.0.2")).startswith("HTTP/1.1 101")


async def test_sessions_of_all(tmp_path: Path) -> None:
    """A relay has a number of sessions over all sources."""
    async with site(tmp_path, limit_sessions=2) as relay:
        await sessions_at_their_cap(relay, "sessions", "127.0.0.2")


async def sessions_at_their_cap(relay: Site, kind: str, address: str = "127.0.0.1") -> None:
    async with _Agent.of(relay, b"\x11" * 32):
        async with _Agent.of(relay, hello=False):
            head = await refusal(relay.port, address)
            assert head.startswith("HTTP/1.1 503")
            assert "Retry-After: 10\r\n" in head
            assert relay.limited == {kind: 1}
            assert (await refusal(relay.port, address)).startswith("HTTP/1.1 503")
        await until(lambda: relay.relay.gate.state().sessions == 1)
        assert (await refusal(relay.port, address)).startswith("HTTP/1.1 101")
    await until(lambda: relay.relay.gate.state().sessions == 0)


async def test_sessions_that_did_not_begin_do_not_count(tmp_path: Path) -> None:
    """An upgrade that is refused for another reason takes no place."""
    async with site(tmp_path, limit_sessions=1) as relay, Caller.of(relay) as caller:
        assert await caller.statuses(3, "/api/v1/tunnel") == [422] * 3
        assert (await refusal(relay.port)).startswith("HTTP/1.1 101")


async def test_upgrades_of_a_source(tmp_path: Path) -> None:
    """A source may begin twice as many sessions at once as it may have, and then no more for a while."""
    async with site(tmp_path, limit_source_sessions=3) as relay:
        for _ in range(6):
            assert (await refusal(relay.port)).startswith("HTTP/1.1 101")
            await until(lambda: relay.relay.gate.state().sessions == 0)
        head = await refusal(relay.port)
        assert head.startswith("HTTP/1.1 429")
        assert "Retry-After: 4\r\n" in head
        assert relay.limited == {"upgrades": 1}


# --- frames -----------------------------------------------------------------------------------------


def code(received: Frame) -> str:
    return Reset.parse(received[4]).code


async def opened(agent: _Agent, number: int, service: str = "ann/nothing", token: str | None = None) -> str:
    """The result of an OPEN."""
    message = Open(service=service, uuid=secrets.token_hex(16), limit=1 << 16, secret="00" * 32, token=token)
    agent.send(frame(frames.OPEN, number, payload=message.encode()))
    return code(await agent.next(frames.RESET))


async def offered(agent: _Agent, number: int, token: str) -> str:
    """The code of a refused OFFER."""
    service = "ann/web"
    offer = Offer(service=service, host=host_id(agent.process, service), digest="00" * 32, token=token)
    agent.send(frame(frames.OFFER, number, payload=offer.encode()))
    return code(await agent.next(frames.RESET))


async def test_opens_that_fail_in_several_sessions(tmp_path: Path) -> None:
    """Failures in all sessions of a source count together."""
    async with (
        site(tmp_path, limit_failed_opens=1) as relay,
        _Agent.of(relay, b"\x11" * 32) as one,
        _Agent.of(relay, b"\x22" * 32) as two,
    ):
        told = [await opened(one, number) for number in (1, 3, 5)]
        told += [await opened(two, number) for number in (1, 3)]
        assert told == ["unknown_service"] * 5
        assert [await opened(agent, 7) for agent in (one, two)] == ["rate_limited"] * 2
        assert relay.limited == {"failed_opens": 2}


async def test_bad_tokens_in_frames(tmp_path: Path) -> None:
    """Bad tokens of OFFERs count with those of requests; then none is looked up, and what needs none goes on."""
    async with (
        site(tmp_path, limit_bad_tokens=4) as relay,
        Caller.of(relay) as caller,
        _Agent.of(relay) as agent,
    ):
        assert [await offered(agent, number, unknown_token()) for number in (1, 3)] == ["token_refused"] * 2
        assert await caller.bad(2) == [401, 429]
        looked_up = relay.looked_up
        assert await offered(agent, 5, unknown_token()) == "rate_limited"
        assert await opened(agent, 7, token=unknown_token()) == "rate_limited"
        assert relay.looked_up == looked_up
        assert await opened(agent, 9) == "unknown_service"


# --- whose it is -------------------------------------------------------------------------------------


def by(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


async def test_behind_a_trusted_proxy(tmp_path: Path) -> None:
    """Behind a trusted proxy, the sources are those it names; IPv6 counts by 64 bits, and forged lists don't help."""
    async with (
        site(tmp_path, limit_bad_tokens=2, trusted_proxy="127.0.0.1") as relay,
        Caller.of(relay) as caller,
    ):
        assert await caller.bad(2, headers=by("192.0.2.1")) == [401, 429]
        assert await caller.bad(1, headers=by("198.51.100.9, 192.0.2.1")) == [429]
        assert await caller.bad(2, headers=by("192.0.2.2")) == [401, 429]
        assert await caller.bad(1, headers=by("2001:db8:0:1::1")) == [401]
        assert await caller.bad(1, headers=by("2001:db8:0:1:ffff::2")) == [429]
        assert await caller.bad(1, headers=by("2001:db8:0:2::1")) == [401]


async def test_behind_a_server_that_nobody_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without --trusted-proxy, users behind a local server are not limited together, and the log says why, once."""
    caplog.set_level(logging.WARNING)
    async with site(tmp_path, limit_bad_tokens=2) as relay, Caller.of(relay) as caller:
        assert await caller.bad(2, headers=by("192.0.2.1")) == [401, 429]
        assert await caller.bad(2, headers=by("192.0.2.2")) == [401, 429]
        assert await caller.bad(3, headers={"Via": "1.1 proxy"}) == [401] * 3
        assert await caller.bad(2) == [401, 429]  # programs of this machine are one source as well
    told = [record.getMessage() for record in caplog.records if "--trusted-proxy 127.0.0.1" in record.getMessage()]
    assert len(told) == 1


async def test_off(tmp_path: Path) -> None:
    """A limit that is off does not limit."""
    async with site(tmp_path) as relay, Caller.of(relay) as caller:
        assert await caller.bad(30) == [401] * 30
        for number in range(12):
            await caller.admin(f"a{number}")
        assert relay.limited == {}
