"""A relay with two admins and their services, and every kind of token that a caller may show there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.tokens import SECRET_BYTES, format_token, token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Offer, Open, Reset
from kdispatch_relay.api.route import ApiRoute
from kdispatch_relay.server import RunningRelay
from kdispatch_relay.settings import LIMITS
from kdispatch_relay.store.records import NewToken
from tests.relay.test_door import relay_with
from tests.relay.test_gate import _Agent as Agent

__all__ = ["ABSENT", "FRAMES", "GATE", "OPEN", "SHOWN", "Given", "People", "people", "random_token"]

#: Ann's services, with names of equal length: a public one, one that needs a token, and one that does not exist.
OPEN, GATE, ABSENT = "open", "gate", "none"
#: The tokens that a caller may show.
SHOWN: Final = (
    "none",
    "malformed",
    "wrong",
    "expired",
    "revoked",
    "suspended",
    "other admin",
    "svc",
    "other svc",
    "cli",
    "other cli",
    "hst",
    "inv",
    "owner",
)
FRAMES: Final = ("OFFER", "OPEN", "ATTACH host", "ATTACH client")
_WAIT: Final = 5.0


@dataclass(frozen=True)
class Given:
    """An answer: one word, and all its bytes without the clock, the request's id and the name in the request."""

    word: str
    raw: object = field(repr=False)


def random_token(kind: str) -> str:
    return format_token(kind, secrets.token_bytes(SECRET_BYTES))


@dataclass
class People:
    """``tokens`` are keyed by service and by their name in ``SHOWN``."""

    relay: RunningRelay
    http: aiohttp.ClientSession
    agent: Agent
    peer: Agent
    tokens: dict[tuple[str, str], str | None] = field(default_factory=dict)
    ids: dict[str, dict[str, str]] = field(default_factory=dict)  # values of path parameters, by service
    _numbers: Any = field(default_factory=lambda: itertools.count(1, 2))

    # --- REST -----------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, token: str | None, body: object = None, hide: str = "") -> Given:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.http.request(method, path, json=body, headers=headers) as answer:
            text = await answer.text()
        said = json.loads(text) if answer.content_type.endswith("json") and text else {}
        given_headers = tuple((name, value) for name, value in answer.raw_headers if name != b"Date")
        if answer.status < 400:
            return Given("yes", (answer.status, said))
        text = text.replace(said["request_id"], "ID").replace(hide or "\0", "NAME")
        return Given(f"{answer.status} {said['code']}", (answer.reason, given_headers, text))

    async def made(self, path: str, token: str | None, **body: object) -> dict[str, Any]:
        given = await self.ask("POST", f"/api/v1{path}", token, body)
        assert given.word == "yes", given
        assert isinstance(given.raw, tuple)
        return dict(given.raw[1])

    async def asks(self, route: ApiRoute, service: str, shown: str) -> Given:
        """Send one request of ``route``; everything in it is valid except possibly the token."""
        values = {"handle": "ann", "name": service, **self.ids[service]}
        if route.name != "withdraw_host":
            body = None if route.body is None else self._body(route)
            path = route.path.format_map(values)
            return await self.ask(route.method, path, self.tokens[service, shown], body, service)
        async with AsyncExitStack() as stack:  # its own host each time, because a withdrawal is final
            token = self.tokens[service, shown]
            host = "0" * 32
            if service != ABSENT:
                agent = await stack.enter_async_context(Agent.of(self.relay, secrets.token_bytes(32)))
                own = token if shown == "hst" and token else random_token("hst")
                assert (await self.offers(agent, service, self.tokens[GATE, "owner"], own)).word == "yes"
                host = host_id(agent.process, f"ann/{service}")
            return await self.ask("DELETE", f"/api/v1/hosts/{host}", token)

    def _body(self, route: ApiRoute) -> dict[str, object]:
        name = f"n{next(self._numbers)}"
        bodies: dict[str, dict[str, object]] = {
            "create_admin": {"handle": name},
            "create_service": {"name": name},
            "change_service": {"pins": False},
            "create_token": {"name": name, "for": "admin"},
            "create_invite": {"for": "connect"},
        }
        return bodies.get(route.name, {})

    # --- frames ---------------------------------------------------------------------------------

    async def sends(self, what: str, service: str, shown: str) -> Given:
        """Send one frame of an agent's session; everything in it is valid except possibly the token."""
        token = self.tokens[service, shown]
        if what == "OFFER":
            return await self.offers(self.agent, service, token or "", random_token("hst"))
        if what == "OPEN":
            return await self.opens(service, token)
        return await self._attaches(service, token, what.split()[1])

    async def offers(self, agent: Agent, service: str, token: str | None, own: str) -> Given:
        name, number = f"ann/{service}", next(self._numbers)
        digest = token_digest(own).hex()
        offer = Offer(service=name, host=host_id(agent.process, name), digest=digest, token=token or "")
        agent.send(frame(frames.OFFER, number, payload=offer.encode()))
        given = await _answer(agent, number, frames.OFFERED, service)
        if given.word == "yes" and agent is self.agent:
            agent.send(frame(frames.WITHDRAW, number))
        return given

    async def opens(self, service: str, token: str | None) -> Given:
        number = next(self._numbers)
        message = Open(
            service=f"ann/{service}", uuid=secrets.token_hex(16), limit=1 << 18, secret="00" * 32, token=token
        )
        self.agent.send(frame(frames.OPEN, number, payload=message.encode()))
        given = await _answer(self.agent, number, frames.TRYING, service)
        if given.word == "yes":
            self.agent.send(frame(frames.RESET, number, payload=Reset(code="cancelled").encode()))
        return given

    async def _attaches(self, service: str, token: str | None, role: str) -> Given:
        number = next(self._numbers)
        entry = AttachEntry(
            uuid=secrets.token_hex(16),
            service=f"ann/{service}",
            role=role,
            peer=self.peer.process,
            number=number,
            received=0,
            limit=1 << 18,
            attach=1,
            proof="00" * 32,
        )
        self.agent.send(frame(frames.ATTACH, payload=Attach.of([entry], token).encode()))
        given = await _answer(self.agent, number, frames.ATTACH, service)
        # The relay asks the other end only after its own check allows it; that end does not know the stream.
        return Given("yes", given.raw) if given.word == "unknown_stream" else given

    async def answering(self) -> None:
        """Play the other end: it knows no stream, and it never answers an OPEN."""
        while True:
            with contextlib.suppress(TimeoutError):
                await self.peer._some_frame()
            while self.peer.frames:
                type_, _, _, _, payload = self.peer.frames.pop(0)
                if type_ == frames.ATTACH:
                    for entry in Attach.parse(payload).entries():
                        no = Reset(code="unknown_stream", uuid=entry.uuid, process=entry.peer)
                        self.peer.send(frame(frames.RESET, payload=no.encode()))


async def _answer(agent: Agent, number: int, yes: int, hide: str) -> Given:
    async with asyncio.timeout(_WAIT):
        while True:
            await agent._some_frame()
            type_, flags, of, value, payload = agent.frames.pop(0)
            if of == number and type_ == yes:
                return Given("yes", None)
            if of == number and type_ == frames.RESET:
                raw = bytes(payload).replace(hide.encode(), b"NAME")
                return Given(Reset.parse(payload).code, (flags, value, raw))


async def _furnish(site: People) -> None:
    """Create the accounts, services, tokens and invitations."""
    ann, bob, carl = [(await site.made("/admins", None, handle=who))["token"] for who in ("ann", "bob", "carl")]
    repository = site.relay.authority.repository
    await repository.accounts.suspend("carl")
    expired = random_token("adm")
    new = NewToken(token_digest(expired), "old", int(time.time()) - 1)
    await repository.tokens.create(await site.relay.authority.identify(ann), new, kind="adm", name=None, source="")
    revoked, spare = [await site.made("/tokens", ann, name="x", **{"for": "admin"}) for _ in range(2)]
    await site.ask("DELETE", f"/api/v1/tokens/{revoked['id']}", ann)
    invites = {}
    for service, access in ((OPEN, "public"), (GATE, "token")):
        svc = (await site.made("/services", ann, name=service, access=access))["token"]
        cli = (await site.made("/tokens", ann, name="c", **{"for": "connect"}, service=service))["token"]
        path = f"/services/ann/{service}/invites"
        code = (await site.made(path, ann, **{"for": "connect"}, uses=10_000))["code"]
        invites[service] = (await site.made(path, ann, **{"for": "host"}))["id"]
        site.tokens |= {(service, "svc"): svc, (service, "cli"): cli, (service, "inv"): code}
    for service, other in ((OPEN, GATE), (GATE, OPEN), (ABSENT, OPEN)):
        own = service if service != ABSENT else GATE  # a missing service has no tokens of its own
        shown = {
            "none": None,
            "malformed": "adm_x",
            "wrong": random_token("adm"),
            "expired": expired,
            "revoked": revoked["token"],
            "suspended": carl,
            "other admin": bob,
            "hst": random_token("hst"),
            "owner": ann,
            **{kind: site.tokens[own, kind] for kind in ("svc", "cli", "inv")},
            **{f"other {kind}": site.tokens[other, kind] for kind in ("svc", "cli")},
        }
        site.tokens |= {(service, name): token for name, token in shown.items()}
        token = spare["id"] if service != ABSENT else "0" * 16
        site.ids[service] = {"token": token, "invite": invites.get(service, "0" * 16)}
    for service in (OPEN, GATE):
        assert (await site.offers(site.peer, service, ann, random_token("hst"))).word == "yes"


@asynccontextmanager
async def people(folder: Path) -> AsyncIterator[People]:
    """Run the whole site on a relay without rate limits; its database is in ``folder``."""
    async with (
        relay_with(folder, DEFAULT_LIMITS, **dict.fromkeys(LIMITS, 0)) as relay,
        aiohttp.ClientSession(f"http://127.0.0.1:{relay.port}") as http,
        Agent.of(relay, b"\x11" * 32) as agent,
        Agent.of(relay, b"\x22" * 32) as peer,
    ):
        site = People(relay, http, agent, peer)
        await _furnish(site)
        answering = asyncio.create_task(site.answering())
        try:
            yield site
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
