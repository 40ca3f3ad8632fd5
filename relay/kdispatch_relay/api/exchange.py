"""Reading requests and writing answers, the same way for every resource."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import NAME_PATTERN, check_name

__all__ = ["BODY_LIMIT", "PREFIX", "Body", "Name", "answer", "bearer", "read_body"]

PREFIX: Final = "/api/v1"
BODY_LIMIT: Final = 64 * 1024  # bytes; the largest body with a meaning has a few hundred
_BODY_TIME: Final = 8.0  # seconds for a body to arrive; below those after which its connection is closed without a word
_ERRORS_SHOWN: Final = 3
_PLACE_SHOWN: Final = 80  # characters; the sender chooses the keys

#: A handle or name in a body. The pattern is for the schema only: ``check_name`` raises ``bad_name``.
Name = Annotated[str, AfterValidator(check_name), Field(json_schema_extra={"pattern": f"^{NAME_PATTERN}$"})]


class Body(BaseModel):
    """Base of all bodies, both ways: nothing is guessed and nothing unknown is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_Body = TypeVar("_Body", bound=Body)


async def read_body(request: web.Request, model: type[_Body]) -> _Body:
    """The request's JSON as ``model``; raise ``bad_request``, ``bad_name``, or HTTP's own 408, 413, 415."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType
    try:
        async with asyncio.timeout(_BODY_TIME):
            data = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except (web.RequestPayloadError, OSError) as error:  # bad chunks; the sender hung up
        raise KdispatchError("bad_request", "The body is not what its headers announce.") from error
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise KdispatchError("bad_request", _explain(error)) from None


def bearer(request: web.Request) -> str | None:
    """The token of the ``Authorization`` header, the only place where it is looked for."""
    headers = request.headers.getall("Authorization", [])
    if not headers:
        return None
    scheme, _, token = headers[0].partition(" ")
    if len(headers) > 1 or scheme.lower() != "bearer":
        raise KdispatchError("token_refused", "Authorization must be 'Bearer TOKEN', once.")
    return token.strip()


def answer(body: Body, *, status: int = 200) -> web.Response:
    """``body`` as JSON. Nothing is to be cached: answers hold tokens, or what holds at this moment only."""
    return web.Response(
        status=status,
        body=body.model_dump_json(exclude_none=True).encode(),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _explain(error: ValidationError) -> str:
    # Without the input: what was sent by mistake may be a secret.
    found = error.errors(include_url=False, include_context=False, include_input=False)[:_ERRORS_SHOWN]
    places = (".".join(str(part) for part in item["loc"])[:_PLACE_SHOWN] or "the body" for item in found)
    return "; ".join(f"{place}: {item['msg']}" for place, item in zip(places, found, strict=True)) + "."
