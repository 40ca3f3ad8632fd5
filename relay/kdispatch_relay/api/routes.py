"""All routes, and how they are added to the app."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Final

from aiohttp import web

from kdispatch_relay.api import admins, audit, health, hosts, invites, relay_state, services, tokens, tunnel
from kdispatch_relay.api.exchange import Call, respond
from kdispatch_relay.api.openapi import Description, document
from kdispatch_relay.api.route import ApiRoute, Section
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.version import version

__all__ = ["ROUTES", "add_routes"]


async def describe(_call: Call) -> web.Response:
    """Return the OpenAPI document of all routes."""
    body = await asyncio.to_thread(_described)  # once; it takes as long as a hundred requests
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


@cache
def _described() -> bytes:
    return document(ROUTES, version())


ROUTES: Final[tuple[ApiRoute, ...]] = (
    *admins.ROUTES,
    *services.ROUTES,
    *hosts.ROUTES,
    *tokens.ROUTES,
    *invites.ROUTES,
    *audit.ROUTES,
    *tunnel.ROUTES,
    *relay_state.ROUTES,
    *health.ROUTES,
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/openapi.json",
        name="describe",
        handler=describe,
        section=Section.DESCRIPTION,
        who="anybody",
        does="describes this API for programs",
        text="Returns this description as OpenAPI 3.1.",
        answer=Description,
    ),
)


def add_routes(app: web.Application, routes: Iterable[ApiRoute] = ROUTES) -> None:
    """Let ``app`` serve these routes."""
    for route in routes:
        methods = ("GET", "HEAD") if route.head and route.method == "GET" else (route.method,)
        for method in methods:
            app.router.add_route(method, route.path, _answering(route))


def _answering(route: ApiRoute) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answering(request: web.Request) -> web.StreamResponse:
        given = await route.handler(Call(route, request))
        return given if isinstance(given, web.StreamResponse) else respond(given, route.status)

    return answering
