"""Refuses requests before the app sees them: scanners send thousands a day, and each costs only one count."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from kdispatch_relay.door.arrivals import Arrival
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.problems import Problem
from kdispatch_relay.settings import host_of, is_loopback
from kdispatch_relay.sources import is_passed_on

__all__ = ["TUNNEL", "RequestScreen"]

TUNNEL: Final = f"{PREFIX}/tunnel"

_API: Final = f"{PREFIX}/"
#: Load balancers ask for these by address, and they reveal nothing that a name could protect.
_HEALTH: Final = frozenset({"/healthz", "/readyz"})

_UNKNOWN_ADDRESS: Final = Problem("unknown_address")
_WRONG_METHOD: Final = Problem("wrong_method")
_MISDIRECTED: Final = Problem("misdirected")
# No web page has business with a relay. What a browser lets a page send is harmless today, because no cookie identifies
# a user; this rule keeps it so.
_PAGE: Final = Problem("not_permitted", "Web pages may not use this.")


class RequestScreen:
    """Checks requests for ``app``. ``hosts`` are the names that the relay answers to; empty for any."""

    def __init__(self, app: web.Application, hosts: frozenset[str], refused: Counter[str]) -> None:
        self._router = app.router
        self._hosts = hosts
        self._refused = refused

    async def refusal(self, request: web.Request, arrival: Arrival) -> web.Response | None:
        """The answer to a request that goes no further; ``None`` if it may pass."""
        path = request.path
        health = path in _HEALTH
        if self._hosts and not health and not self._is_for_us(request, arrival):
            return self._counted(_MISDIRECTED)
        if not health:
            if not path.startswith(_API):
                return self._counted(_UNKNOWN_ADDRESS)
            if hdrs.ORIGIN in request.headers:
                return self._counted(_PAGE)
        error = (await self._router.resolve(request)).http_exception
        if error is None:
            return None
        if error.status != HTTPStatus.METHOD_NOT_ALLOWED:
            return self._counted(_UNKNOWN_ADDRESS)
        response = self._counted(_WRONG_METHOD)
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        return response

    def _counted(self, problem: Problem) -> web.Response:
        self._refused[problem.code] += 1
        return problem.response()

    def _is_for_us(self, request: web.Request, arrival: Arrival) -> bool:
        """Whether the request uses one of the relay's names, or comes from this machine and uses its address.

        A request passed on by a server in front also comes from this machine, but has that server's headers.
        """
        named = request.headers.getall(hdrs.HOST, [])
        host = host_of(named[0]) if len(named) == 1 else ""
        if host in self._hosts:
            return True
        if is_passed_on(request.headers):
            return False
        own = request.protocol.sockname
        address = own[0] if isinstance(own, tuple) else ""
        return (is_loopback(arrival.peer) or arrival.peer == address) and (is_loopback(host) or host == address)
