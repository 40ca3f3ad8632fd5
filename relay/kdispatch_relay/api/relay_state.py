"""What a relay is doing at this moment, for its operator only."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import Final

from aiohttp import hdrs, web
from yarl import URL

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_digest
from kdispatch_relay.api.exchange import PREFIX, Body, answer, bearer
from kdispatch_relay.api.keys import ARRIVALS, LIMITER, LIVE_HOSTS, OPERATOR
from kdispatch_relay.settings import is_loopback
from kdispatch_relay.sources import is_passed_on
from kdispatch_relay.version import version

__all__ = ["ROUTES"]


class Queue(Body):
    """The agent for which most waits: its process id, and bytes."""

    agent: str
    bytes: int


class State(Body):
    """One relay; ``since`` is written as RFC 3339, in UTC."""

    relay: str
    version: str
    since: datetime
    draining: bool
    sessions: int
    hosts: int
    streams: dict[str, int]
    waiting: int
    queued_bytes: int
    longest_queue: Queue | None
    marks: int
    cuts: dict[str, int]
    arrivals: int
    refused: dict[str, int]
    limited: dict[str, int]


async def show_state(request: web.Request) -> web.Response:
    """Tell it to this machine, or to whoever has the operator's token."""
    _check(request)
    state = request.app[LIVE_HOSTS].state()
    arrivals = request.app[ARRIVALS]
    longest = state.longest
    return answer(
        State(
            relay=state.relay,
            version=version(),
            since=datetime.fromtimestamp(round(state.since), UTC),
            draining=state.draining,
            sessions=state.sessions,
            hosts=state.hosts,
            streams=dict(state.streams),
            waiting=state.waiting,
            queued_bytes=state.queued,
            longest_queue=None if longest is None else Queue(agent=longest.agent, bytes=longest.queued),
            marks=state.marks,
            cuts=dict(state.cuts),
            arrivals=len(arrivals),
            refused=dict(sorted(arrivals.refused.items())),
            limited=dict(sorted(request.app[LIMITER].limited.items())),
        )
    )


def _check(request: web.Request) -> None:
    digest = request.app[OPERATOR]
    token = bearer(request)
    if token is not None:
        if digest is None or not hmac.compare_digest(token_digest(token), digest):
            raise KdispatchError("token_refused", "This is not the operator's token.")
    elif not _is_of_this_machine(request):
        if digest is None:
            raise KdispatchError("not_permitted", "Only the relay's own machine may ask for this.")
        raise KdispatchError("token_refused", "From other machines this needs the operator's token.")


def _is_of_this_machine(request: web.Request) -> bool:
    """Whether a program of this machine asks, for itself.

    The address is that of the connection. A local proxy connects from this machine, too: it is known by what it adds.
    The host must be this machine's: a page from elsewhere, whose name leads here, has its own.
    """
    if is_passed_on(request.headers):
        return False
    try:
        host = URL(f"http://{request.headers.get(hdrs.HOST, '')}").host or ""
    except ValueError:
        return False
    return is_loopback(request.remote or "") and is_loopback(host)


ROUTES: Final = [web.get(f"{PREFIX}/relay/state", show_state, allow_head=False)]
