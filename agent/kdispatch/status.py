"""The status of an agent as plain numbers and texts, read from its parts at this moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from kdispatch.uplink import Uplink
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.transport import LocalConnection
from kdispatch_protocol.endpoint.streams import Stream

__all__ = ["agent_status", "running_streams"]

#: Listed streams: as many as a client may have. Beyond it only the count is reported. These are 0.25 MB, made in 3 ms.
STREAMS: Final = 1024


def agent_status(uplink: Uplink, services: Sequence[dict[str, Any]], *, drains_for: float | None) -> dict[str, Any]:
    """The session, the services and the streams. Times are in seconds before or after now, sizes in bytes."""
    now = uplink.driver.loop.time()
    condition = uplink.condition
    error = condition.last_error
    path = condition.path
    streams = list(_streams(uplink.driver))
    return {
        "state": condition.state,
        "connected_for": _since(condition.connected_at, now),
        "round_trip": _rounded(condition.round_trip, 6),
        "unanswered": _rounded(condition.unanswered),
        "idle_limit": None if path is None else _rounded(path.idle_limit(now), 1),
        "age_limit": None if path is None else _rounded(path.age_limit(now), 1),
        "next_try": None if condition.next_try is None else max(0.0, round(condition.next_try - now, 3)),
        "last_error": None if error is None else {"code": error.code, "text": error.text, "ago": _since(error.at, now)},
        "drains_for": drains_for,
        "services": list(services),
        "stream_count": len(streams),
        "streams": [
            _stream(stream, pipe, now, uplink.endpoint.table.resumption.expires(stream))
            for stream, pipe in streams[:STREAMS]
        ],
    }


def running_streams(driver: EndpointDriver) -> int:
    """Number of streams, including ended ones whose last bytes a local program has not taken yet."""
    return sum(1 for _ in _streams(driver))


def _streams(driver: EndpointDriver) -> Iterator[tuple[Stream, LocalConnection | None]]:
    pipes = {pipe.stream.stream: pipe for pipe in driver.pipes if pipe.stream is not None}
    for stream in driver.endpoint.table.by_uuid.values():
        yield stream, pipes.pop(stream, None)
    yield from pipes.items()


def _stream(stream: Stream, pipe: LocalConnection | None, now: float, expires: float | None) -> dict[str, Any]:
    """``host`` is the host's id for a client's end; ``peer`` is the id of the process at the other end.

    ``expires_in`` is the time in seconds after which this end resets the stream, if it is still detached then.
    """
    return {
        "id": stream.uuid,
        "service": stream.service,
        "state": "detached" if stream.grace is not None else stream.state.value,
        "host": stream.host or None,
        "peer": stream.peer or None,
        "sent": stream.outbound.end,
        "received": stream.inbound.received,
        "age": None if pipe is None else _since(pipe.began, now),
        "detached": None if stream.grace is None else _since(stream.detached_at, now),
        "expires_in": None if expires is None else max(0.0, round(expires - now, 3)),
    }


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else round(now - moment, 3)


def _rounded(seconds: float | None, digits: int = 3) -> float | None:
    return None if seconds is None else round(seconds, digits)
