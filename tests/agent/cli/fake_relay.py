"""A relay of eighty lines: the REST contract as the command line sees it, with any answer that a test wants."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.tokens import format_token
from tests.agent.cli.here import run_here
from tests.guards.environment import inherited

Answer = Callable[[web.Request], Awaitable[web.Response]]


def new_token(kind: str) -> str:
    return format_token(kind, secrets.token_bytes(32))


def problem(code: str, status: int, detail: str = "", **more: Any) -> web.Response:
    body = {"code": code, "detail": detail, "status": status, "request_id": "r1", **more}
    return web.Response(status=status, text=json.dumps(body), content_type="application/problem+json")


@dataclass
class FakeRelay:
    """The test can access its tables; ``instead``, when set, answers every request."""

    url: str = ""
    handles: dict[str, str] = field(default_factory=dict)  # token -> handle
    services: dict[str, str] = field(default_factory=dict)  # ann/web -> token
    hosts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization
    instead: Answer | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._any)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _any(self, request: web.Request) -> web.Response:
        self.seen.append((request.method, request.path, request.headers.get("Authorization")))
        try:
            return await (self.instead or self._contract)(request)
        except KdispatchError as error:
            return problem(error.code, CODES[error.code].http or 500, error.text)

    async def _contract(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        match (request.method, *request.path.removeprefix("/api/v1/").split("/")):
            case ("POST", "admins"):
                return self._sign_up(body["handle"])
            case ("POST", "services"):
                return self._create(f"{self._handle(request)}/{body['name']}")
            case ("GET", "services"):
                mine = [name for name in self.services if name.startswith(f"{self._handle(request)}/")]
                return web.json_response({"services": [self._view(name) for name in mine]})
            case ("DELETE", "services", handle, name) if handle == self._handle(request):
                if self.services.pop(f"{handle}/{name}", None):
                    return web.Response(status=204)
            case ("DELETE", "hosts", host):
                live = [one for hosts in self.hosts.values() for one in hosts if one["host"] == host]
                if self._handle(request) and not live:
                    raise KdispatchError("unknown_host")
                self.hosts.clear()
                return web.Response(status=204)
            case ("GET", "services", handle, name, *rest) if f"{handle}/{name}" in self.services:
                service = f"{handle}/{name}"
                if rest == ["hosts"]:
                    return web.json_response({"service": service, "hosts": self.hosts.get(service, [])})
                return web.json_response(self._view(service))
            case ("GET", "whoami"):
                return web.json_response({"kind": "adm", "handle": self._handle(request)})
        raise KdispatchError("unknown_service")

    def _sign_up(self, handle: str) -> web.Response:
        if handle in self.handles.values():
            raise KdispatchError("handle_taken", f"{handle} is taken.")
        self.handles[token := new_token("adm")] = handle
        return web.json_response({"handle": handle, "token": token}, status=201)

    def _create(self, service: str) -> web.Response:
        if service in self.services:
            raise KdispatchError("service_exists")
        self.services[service] = new_token("svc")
        return web.json_response(
            {"service": service, "access": "public", "token": self.services[service], "later": 1}, status=201
        )

    def _view(self, service: str) -> dict[str, Any]:
        return {"service": service, "access": "public", "live_hosts": len(self.hosts.get(service, []))}

    def _handle(self, request: web.Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.handles:
            raise KdispatchError("token_refused")
        return self.handles[token]


@dataclass(frozen=True)
class Ended:
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def code(self) -> str:
        """The stable code in the first line of the error."""
        return self.err.splitlines()[0].rpartition("[")[2].rstrip("]")


@dataclass(frozen=True)
class Shell:
    """Runs the real console script with the test's own configuration directory, and no KDISPATCH variables."""

    directory: Path
    relay: FakeRelay

    def environment(self, **more: str) -> dict[str, str]:
        clean = {key: value for key, value in inherited().items() if not key.startswith("SSL_")}
        own = {"KDISPATCH_CONFIG_DIR": str(self.directory), "KDISPATCH_STATE_DIR": str(self.directory / "state")}
        return clean | own | {"HOME": "/nonexistent", "COLUMNS": "100"} | more

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("kdispatch")),
            *arguments,
            env=self.environment(**environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def here(self, line: str, *more: str, **environment: str) -> Ended:
        """The same command in a thread of this process."""
        return Ended(*await run_here([*line.split(), *more], self.environment(**environment)))

    async def __call__(self, line: str, *more: str, stdin: str = "", **environment: str) -> Ended:
        process = await self.start(*line.split(), *more, **environment)
        out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())
