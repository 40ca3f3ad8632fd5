"""Acceptance point 7 of accounts and access: the OpenAPI document holds for all requests that schemathesis generates.

The relay is a real one in this process, with its gate and its database. schemathesis runs with all of its checks in a
process for each caller; ``schemathesis_hooks.py`` tells it what exists.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.tokens import token_digest, token_id
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Open, Opened
from kdispatch_relay.api.openapi import document
from kdispatch_relay.api.routes import ROUTES
from kdispatch_relay.server import RunningRelay
from kdispatch_relay.settings import LIMITS
from tests.net.harness import sizes
from tests.relay.test_door import relay_with
from tests.relay.test_gate import _Agent
from tests.relay.test_limits import Caller, unknown_token

_ROOT: Final = Path(__file__).parents[2]
_HOSTED: Final = "web"  # its hosts can be withdrawn
_USED: Final = "used"  # it always has a client
_HOSTS: Final = 3
_EVERYBODY: Final = ("nobody", "ann", "bob")
_OPERATOR: Final = "5f" * 20
_WAIT: Final = 600.0  # seconds of one run; this only ends what hangs

#: What can't hold for one operation, for a reason of its own.
_EXCEPTIONS: Final = """
# The operation needs an upgrade to a WebSocket, which no plain HTTP client sends.
[[operations]]
include-operation-id = "open_tunnel"
checks.positive_data_acceptance.enabled = false

# A code may be used up (410), which no request schema can express; it is checked before the body.
[[operations]]
include-operation-id = "accept_invite"
checks.negative_data_rejection.expected-statuses = ["4xx"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "410", "429"]
"""
#: What refuses before a request is looked at says nothing of the request.
_WITH_LIMITS: Final = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)

Counts = Counter[tuple[str, int]]  # of answers, by operation and status


@dataclass(frozen=True)
class Account:
    """An admin, and what it had at the start. Each token of ``tokens`` and each code is of a different service."""

    handle: str
    token: str
    names: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    invites: tuple[tuple[str, str], ...] = ()
    codes: tuple[str, ...] = ()

    @classmethod
    async def of(cls, caller: Caller, handle: str) -> Account:
        account = cls(handle, await caller.admin(handle), tuple(f"s{number}" for number in range(6)))
        for name in (_HOSTED, _USED, *account.names):
            await account.create(caller, "/api/v1/services", name=name)
        tokens, invites, codes = [], [], []
        for name in account.names:
            wish = {"name": name, "for": "connect", "service": name}
            tokens.append((await account.create(caller, "/api/v1/tokens", **wish))["id"])
            wish = {"name": name, "for": "host"}
            invites.append((name, (await account.create(caller, account.invites_to(name), **wish))["id"]))
            codes.append((await account.create(caller, account.invites_to(_USED), uses=10_000, **wish))["code"])
        return replace(account, tokens=tuple(tokens), invites=tuple(invites), codes=tuple(codes))

    def invites_to(self, name: str) -> str:
        return f"/api/v1/services/{self.handle}/{name}/invites"

    async def create(self, caller: Caller, path: str, **wish: Any) -> dict[str, Any]:
        answer = await caller("POST", path, self.token, json=wish)
        assert answer.status == 201, answer.body
        return dict(answer.body)


class Live:
    """Hosts and clients of all accounts, replaced if they were withdrawn or silent for too long."""

    def __init__(self, relay: RunningRelay, accounts: list[Account]) -> None:
        self._relay = relay
        self._accounts = accounts
        self._stack = AsyncExitStack()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        async with self._stack:
            await self._fill()
            keeping = asyncio.create_task(self._keep())
            try:
                yield
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            await self._fill()

    async def _fill(self) -> None:
        for account in self._accounts:
            while len(self._relay.gate.hosts_of(f"{account.handle}/{_HOSTED}")) < _HOSTS:
                await self._host(account, _HOSTED)
            if not self._relay.gate.clients_of(f"{account.handle}/{_USED}"):
                await self._use(account)

    async def _host(self, account: Account, name: str) -> _Agent:
        service = f"{account.handle}/{name}"
        agent = await self._stack.enter_async_context(_Agent.of(self._relay, secrets.token_bytes(32)))
        offer = Offer(service=service, host=host_id(agent.process, service), digest="00" * 32, token=account.token)
        agent.send(frame(frames.OFFER, 1, payload=offer.encode()))
        await agent.next(frames.OFFERED)
        return agent

    async def _use(self, account: Account) -> None:
        host = await self._host(account, _USED)
        client = await self._stack.enter_async_context(_Agent.of(self._relay, secrets.token_bytes(32)))
        message = Open(
            service=f"{account.handle}/{_USED}",
            uuid=secrets.token_hex(16),
            limit=1 << 18,
            secret="00" * 32,
            token=account.token,
        )
        client.send(frame(frames.OPEN, 3, payload=message.encode()))
        number = (await host.next(frames.OPEN))[2]
        host.send(frame(frames.OPENED, number, payload=Opened(limit=1 << 18, attempt=1).encode()))
        await client.next(frames.OPENED)


@dataclass(frozen=True)
class World:
    """A relay, two admins, and live hosts and clients."""

    relay: RunningRelay
    folder: Path
    accounts: dict[str, Account]

    @classmethod
    @asynccontextmanager
    async def of(cls, folder: Path, empty_database: Path, **settings: Any) -> AsyncIterator[World]:
        shutil.copy(empty_database, folder / "relay.db")
        operator = folder / "operator.token"
        operator.touch(0o600)
        operator.write_text(_OPERATOR)
        async with AsyncExitStack() as stack:
            relay = await stack.enter_async_context(
                relay_with(folder, DEFAULT_LIMITS, operator_token_file=operator, **settings)
            )
            accounts = {}
            for number, handle in enumerate(("ann", "bob"), start=2):
                # From another address than schemathesis, whose limits then start fresh.
                caller = await stack.enter_async_context(Caller.of(relay, f"127.0.0.{number}"))
                accounts[handle] = await Account.of(caller, handle)
                quotas = {"services": 100_000, "tokens": 100_000}
                await relay.authority.repository.accounts.set_quotas(handle, quotas)
            await stack.enter_async_context(Live(relay, list(accounts.values())).kept())
            yield cls(relay, folder, accounts)

    async def run(self, who: str, seed: int, *options: str) -> Counts:
        """Run schemathesis as ``who``; fails with its report, returns the counts of answers."""
        folder = self.folder / f"{who}-{seed}"
        folder.mkdir()
        given, counts, config = folder / "given.json", folder / "counts.json", folder / "schemathesis.toml"
        given.write_text(json.dumps(self._given(who) | {"seed": seed, "counts": str(counts)}))
        config.write_text(_EXCEPTIONS)
        # From a file: schemathesis does not test the route that it fetches the document from.
        (folder / "openapi.json").write_bytes(document(ROUTES, "0"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
            *("run", "openapi.json", "--url", self.relay.url, "--seed", str(seed), "--no-color", *options),
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(_ROOT),  # without the guards: this is not a process of the product
                "SCHEMATHESIS_HOOKS": "tests.relay.schemathesis_hooks",
                "KDISPATCH_SCHEMATHESIS": str(given),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_WAIT):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        (folder / "output").write_bytes(output)
        assert process.returncode == 0, output.decode()
        return Counter({(label, status): count for label, status, count in json.loads(counts.read_text())})

    def _given(self, who: str) -> dict[str, Any]:
        account = self.accounts.get(who, self.accounts["ann"])
        token = {"nobody": "", "stranger": unknown_token()}.get(who, account.token)
        return {
            "own": token,
            "id": token_id(token_digest(token)) if token else "",
            "operator": _OPERATOR,
            "handle": account.handle,
            "other": "bob" if account.handle == "ann" else "ann",
            "hosted": _HOSTED,
            "used": _USED,
            "name": account.names,
            "token": account.tokens,
            "invite": account.invites,
            "code": account.codes,
            "host": [host.host for host in self.relay.gate.hosts_of(f"{account.handle}/{_HOSTED}")],
        }


def _reached(counts: Counts) -> dict[str, int]:
    """How often each operation gave its intended answer."""
    return {
        route.label: sum(count for (label, status), count in counts.items() if label == route.label and status < 300)
        for route in ROUTES
        if route.name != "open_tunnel"  # agents use it, and they are live
    }


def _statuses(counts: Counts) -> dict[int, int]:
    found: Counter[int] = Counter()
    for (_, status), count in counts.items():
        found[status] += count
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Size:
    requests: int
    examples: int
    phases: str


SMALL: Final = Size(requests=200, examples=3, phases="examples,fuzzing,stateful")
FULL: Final = Size(requests=20_000, examples=120, phases="examples,coverage,fuzzing,stateful")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", sizes(SMALL, FULL))
async def test_what_is_described_is_what_is_done(tmp_path: Path, empty_database: Path, size: Size) -> None:
    """Without a token, as an admin and as another, all requests get documented answers, and the relay never fails."""
    together: Counts = Counter()
    async with World.of(tmp_path, empty_database, **dict.fromkeys(LIMITS, 0)) as world:

        async def ask(who: str) -> Counts:
            """This caller's share of the requests."""
            counts: Counts = Counter()
            seed = 1
            while counts.total() < size.requests / len(_EVERYBODY):
                counts += await world.run(who, seed, "-n", str(size.examples), "--phases", size.phases)
                seed += 1
            return counts

        for who, counts in zip(_EVERYBODY, await asyncio.gather(*map(ask, _EVERYBODY)), strict=True):
            print(f"{who}: {counts.total()} requests, answered {_statuses(counts)}")
            together += counts
    print("\n".join(f"{count:6} x 2xx {label}" for label, count in _reached(together).items()))
    assert together.total() >= size.requests
    assert [label for label, count in _reached(together).items() if count == 0] == []


@pytest.mark.slow
@pytest.mark.parametrize("runs", sizes((("stranger", "fuzzing"),), (("stranger", "coverage"), ("ann", "coverage"))))
async def test_with_limits(tmp_path: Path, empty_database: Path, runs: tuple[tuple[str, str], ...]) -> None:
    """With the default limits, what comes too often is refused as documented, bad tokens first of all."""
    async with World.of(tmp_path, empty_database) as world:
        for who, phase in runs:
            counts = await world.run(who, 1, "-c", _WITH_LIMITS, "-n", "1", "--phases", phase)
            print(f"{who}: {counts.total()} requests, answered {_statuses(counts)}")
            limited = dict(world.relay.limiter.limited)
            assert limited.get("bad_tokens", 0) > 0
    print(f"refused: {limited}")
