"""Reads requests and writes answers, in the same way for every route."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from aiohttp import web
from pydantic import ValidationError

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.api.fields import Answer, Body
from kdispatch_relay.api.keys import AUTHORITY, LIVE_HOSTS, REPOSITORY
from kdispatch_relay.auth import Authority
from kdispatch_relay.door.http_connection import SOURCE
from kdispatch_relay.seams import LiveHosts
from kdispatch_relay.store.repository import Repository

if TYPE_CHECKING:
    from kdispatch_relay.api.route import ApiRoute

__all__ = ["BODY_LIMIT", "Call", "respond"]

BODY_LIMIT: Final = 64 * 1024  # bytes; the largest valid body has a few hundred
_BODY_TIME: Final = 8.0  # seconds for a body to arrive; below those after which the connection is closed silently
_ERRORS_SHOWN: Final = 3
_PLACE_SHOWN: Final = 80  # characters; the sender chooses the keys
_NO_STORE: Final = {"Cache-Control": "no-store"}  # answers hold tokens, or what is true only now

_Body = TypeVar("_Body", bound=Body)


class Call:
    """One request for one route, and what its handler needs."""

    def __init__(self, route: ApiRoute, request: web.Request) -> None:
        """Raises ``bad_request`` for a query that the route does not accept."""
        self.request = request
        self._route = route
        self._query = None if route.any_query else _read_query(request, route.query)

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters of the path, with URL escapes decoded."""
        return self.request.match_info

    @property
    def service(self) -> str:
        """The ``handle/name`` of the path, not validated yet."""
        return "{handle}/{name}".format_map(self.path)

    @property
    def source(self) -> str:
        """The address that the request comes from."""
        return self.request[SOURCE]

    @property
    def token(self) -> str | None:
        """The token of the ``Authorization`` header, the only place that is read."""
        headers = self.request.headers.getall("Authorization", [])
        if not headers:
            return None
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer":
            raise KdispatchError("token_refused", "Authorization must be 'Bearer TOKEN', once.")
        return token.strip()

    @property
    def authority(self) -> Authority:
        """Decides about rights."""
        return self.request.app[AUTHORITY]

    @property
    def repository(self) -> Repository:
        """The store."""
        return self.request.app[REPOSITORY]

    @property
    def live(self) -> LiveHosts:
        """The live hosts."""
        return self.request.app[LIVE_HOSTS]

    def query(self, model: type[_Body]) -> _Body:
        """The query; ``model`` is the route's."""
        assert isinstance(self._query, model)
        return self._query

    async def body(self, model: type[_Body]) -> _Body:
        """The body; ``model`` is the route's.

        Raises ``bad_request``, ``bad_name``, or HTTP's own 408, 413, 415.
        """
        assert model is self._route.body
        if self.request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType
        try:
            async with asyncio.timeout(_BODY_TIME):
                data = await self.request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        except (web.RequestPayloadError, OSError) as error:  # bad chunks, or the client has closed the connection
            raise KdispatchError("bad_request", "The body is not what its headers announce.") from error
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            raise KdispatchError("bad_request", _explain(error, "the body")) from None


def respond(answer: Answer | None, status: int) -> web.Response:
    """``answer`` as JSON; an empty body for ``None``."""
    if answer is None:
        return web.Response(status=status, headers=_NO_STORE)
    body = answer.model_dump_json(exclude_none=True, by_alias=True).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=_NO_STORE)


def _read_query(request: web.Request, model: type[Body] | None) -> Body | None:
    query = request.query
    if model is None:
        if query:
            raise KdispatchError("bad_request", "This address takes no query (the part after '?').")
        return None
    if len(query) != len(set(query)):
        raise KdispatchError("bad_request", "The query has the same parameter twice.")
    try:
        return model.model_validate(dict(query))
    except ValidationError as error:
        raise KdispatchError("bad_request", _explain(error, "the query")) from None


def _explain(error: ValidationError, whole: str) -> str:
    # Without the input: what was sent by mistake may be a secret.
    found = error.errors(include_url=False, include_context=False, include_input=False)[:_ERRORS_SHOWN]
    places = (".".join(str(part) for part in item["loc"])[:_PLACE_SHOWN] or whole for item in found)
    return "; ".join(f"{place}: {item['msg']}" for place, item in zip(places, found, strict=True)) + "."
