"""Errors of the REST API as RFC 9457 problems, with the codes of the central table."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from kdispatch_protocol.errors import CODES, KdispatchError

__all__ = ["MISSING", "Problem", "SpoiledError", "TryLaterError", "problem_response", "problems"]

_log = logging.getLogger(__name__)

# Retry-After in seconds for some codes. For the others 2: a lock is gone by then, or will not be soon.
_RETRY_AFTER: Final = {"quota_exceeded": 60}
#: What HTTP itself refuses: code and text. Any other status is a ``bad_request`` in aiohttp's words.
_REFUSALS: Final = {
    404: ("unknown_address", ""),
    405: ("wrong_method", ""),
    408: ("bad_request", "The body did not arrive in time."),
    413: ("too_large", "The body is larger than 64 KiB."),
    415: ("bad_request", "The body must be JSON, with Content-Type: application/json."),
}

#: Refusals that a token, or another one, could change.
_TOKENLESS: Final = frozenset({"token_refused", "unknown_service", "unknown_host"})

#: The response header that names headers which every agent sends and this request lacks.
MISSING: Final = "Kdispatch-Missing"
_MARK: Final = "REQUEST-ID"


class TryLaterError(KdispatchError):
    """A failure that will be over in ``retry_after`` seconds."""

    def __init__(self, code: str, text: str, retry_after: int) -> None:
        super().__init__(code, text)
        self.retry_after = retry_after


class SpoiledError(KdispatchError):
    """A request without some of the headers that every agent sends; ``missing`` has their names."""

    def __init__(self, code: str, text: str, missing: Sequence[str]) -> None:
        super().__init__(code, text)
        self.missing = missing


class Problem:
    """The answer for ``code``, built once. Each response gets its own request id.

    ``detail`` says what happened here, and must hold no secret. ``status`` replaces the table's, for refusals by HTTP
    itself. ``missing`` are headers that every agent sends and this request lacks: a box on the way may have removed
    them, which only the sender can know.
    """

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        status: int | None = None,
        retry_after: int = 0,
        missing: Sequence[str] = (),
    ) -> None:
        row = CODES[code]
        self.code = code
        self._status = status or row.http or HTTPStatus.INTERNAL_SERVER_ERROR
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self._status).phrase,
            "status": self._status,
            "code": code,
            "detail": detail or row.meaning,
            "hint": row.hint,
            "request_id": _MARK,
        }
        self._before, _, self._after = json.dumps(body).rpartition(_MARK)
        self._headers = CIMultiDict({
            hdrs.CONTENT_TYPE: "application/problem+json; charset=utf-8",
            hdrs.CACHE_CONTROL: "no-store",
        })  # fmt: skip
        if missing:
            self._headers[MISSING] = ", ".join(missing)
        if self._status == HTTPStatus.UNAUTHORIZED:
            self._headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
        if self._status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
            self._headers[hdrs.RETRY_AFTER] = str(retry_after or _RETRY_AFTER.get(code, 2))

    def response(self, request_id: str | None = None) -> web.Response:
        """One response. If the relay is at fault, its log has the request id."""
        body = f"{self._before}{request_id or secrets.token_hex(8)}{self._after}".encode()
        # aiohttp uses this object without a copy, and adds to it.
        return web.Response(status=self._status, body=body, headers=self._headers.copy())


def problem_response(
    code: str,
    detail: str = "",
    *,
    status: int | None = None,
    request_id: str | None = None,
    missing: Sequence[str] = (),
) -> web.Response:
    """A response that is built only once; the arguments are those of :class:`Problem`."""
    return Problem(code, detail, status=status, missing=missing).response(request_id)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a handler, and aiohttp's own refusals, into problems.

    Only defects of the relay are logged: scanners ask for thousands of paths a day.
    """
    try:
        return await handler(request)
    except TryLaterError as error:
        return Problem(error.code, error.text, retry_after=error.retry_after).response()
    except KdispatchError as error:
        return problem_response(error.code, error.text, missing=_missing(request, error))
    except web.HTTPException as error:
        return _refusal(error)
    except Exception:
        if request.writer.output_size > 0:
            raise  # an answer has begun, and a second one would corrupt it
        request_id = secrets.token_hex(8)
        resource = request.match_info.route.resource  # not the path itself, which the sender chose
        _log.exception("Request %s failed: %s %s.", request_id, request.method, resource and resource.canonical)
        return problem_response("internal_error", request_id=request_id)


def _missing(request: web.Request, error: KdispatchError) -> Sequence[str]:
    if isinstance(error, SpoiledError):
        return error.missing
    # Without a token, a service that is not public looks like one that does not exist.
    return (hdrs.AUTHORIZATION,) if error.code in _TOKENLESS and hdrs.AUTHORIZATION not in request.headers else ()


def _refusal(error: web.HTTPException) -> web.Response:
    if error.status < HTTPStatus.BAD_REQUEST:
        raise error
    code, detail = _REFUSALS.get(error.status, ("bad_request", f"{error.reason}."))
    response = problem_response(code, detail, status=error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
