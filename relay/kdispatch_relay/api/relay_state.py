"""The relay's current state, for its operator only."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import Final

from aiohttp import hdrs, web
from pydantic import Field
from yarl import URL

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_digest
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer, Instant
from kdispatch_relay.api.keys import ARRIVALS, LIMITER, OPERATOR
from kdispatch_relay.api.route import ApiRoute, Example, Section
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.settings import is_loopback
from kdispatch_relay.sources import is_passed_on
from kdispatch_relay.version import version

__all__ = ["ROUTES"]


_TEXT: Final = """\
Shows in figures what the relay is doing now. It answers programs on the relay's own machine, and requests with the
operator's token, which is the content of the file that the relay's setting `operator_token_file` names.

A request counts as from the own machine if its connection comes from a loopback address, its `Host` is one
(`127.0.0.1`, `[::1]` or `localhost`), and no header says that it was forwarded. `Forwarded`, `Via`, `X-Forwarded-...`,
`X-Real-IP` and the like are never trusted: they only make a request count as another's. A local proxy that adds none of
them makes all requests look like the machine's own. Let it add one, or do not let it pass on `/api/v1/relay/`. Caddy
adds some by itself.

`refused` counts by code: unknown addresses and methods (`unknown_address`, `wrong_method`), names that the relay does
not answer to (`misdirected`), web pages (`not_permitted`), what is not HTTP or not TLS (`bad_request`), connections
above a limit (`busy`), and those that had shown nothing useful after 10 s (`timed_out`). None of these are logged."""


class Queue(Answer):
    """The agent for which most data waits."""

    agent: str = Field(description="its process id")
    bytes: int = Field(description="bytes that wait for it")


class StateBody(Answer):
    """The state of one relay now."""

    relay: str = Field(description="the relay's id, as agents see it; it is stored in the database, and stays the same")
    version: str = Field(description="the version of kdispatch")
    since: Instant = Field(description="when it started (RFC 3339, UTC)")
    draining: bool = Field(description="whether it asks its agents to move to another relay")
    sessions: int = Field(description="agents' sessions")
    hosts: int = Field(description="live hosts, one for each service that a session offers")
    streams: dict[str, int] = Field(
        description="connections by state: `asking` (rights are looked up), `waiting` (for a host), "
        "`trying` (a host is asked), `open`"
    )
    waiting: int = Field(description="pending attaches: ends of connections that wait for their other end after a loss")
    queued_bytes: int = Field(description="bytes of data that wait for agents")
    longest_queue: Queue | None = Field(default=None, description="the agent for which most data waits, if any does")
    marks: int = Field(description="DATA frames marked since the start because queues were long")
    cuts: dict[str, int] = Field(description="sessions that the relay has ended since its start, by [code](errors.md)")
    arrivals: int = Field(description="unauthenticated connections; the one that asks is among them")
    refused: dict[str, int] = Field(
        description="what was refused since the start before anything else was done for it; see above"
    )
    limited: dict[str, int] = Field(description="rate-limited events since the start, [by kind](operations.md#limits)")


async def show_state(call: Call) -> StateBody:
    """Return the state, to this machine and to holders of the operator's token."""
    _check(call)
    state = call.live.state()
    arrivals = call.request.app[ARRIVALS]
    longest = state.longest
    return StateBody(
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
        limited=dict(sorted(call.request.app[LIMITER].limited.items())),
    )


def _check(call: Call) -> None:
    digest = call.request.app[OPERATOR]
    token = call.token
    if token is not None:
        if digest is None or not hmac.compare_digest(token_digest(token), digest):
            raise KdispatchError("token_refused", "This is not the operator's token.")
    elif not _is_of_this_machine(call.request):
        if digest is None:
            raise KdispatchError("not_permitted", "Only the relay's own machine may ask for this.")
        raise KdispatchError("token_refused", "From other machines this needs the operator's token.")


def _is_of_this_machine(request: web.Request) -> bool:
    """Whether a program on this machine asks, for itself.

    The address is that of the connection. A local proxy also connects from this machine, but adds headers that show it.
    The ``Host`` must be this machine's: a web page from elsewhere whose name resolves to this machine has its own.
    """
    if is_passed_on(request.headers):
        return False
    try:
        host = URL(f"http://{request.headers.get(hdrs.HOST, '')}").host or ""
    except ValueError:
        return False
    return is_loopback(request.remote or "") and is_loopback(host)


ROUTES: Final = (
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/relay/state",
        name="relay_state",
        handler=show_state,
        section=Section.OPERATOR,
        who="relay.state",
        does="shows what the relay is doing",
        text=_TEXT,
        answer=StateBody,
        errors={
            "not_permitted": "from another machine, and the relay has no operator's token",
            "token_refused": "from another machine without the token, or not the operator's token",
        },
        general=("not_permitted", "rate_limited", "misdirected", "internal_error", "busy"),
        head=False,
        example=Example(
            answer={
                "relay": "9a1de3c2f04b4a5c8f2e6d7b1c0a3e58",
                "version": "0.1.0",
                "since": "2026-01-31T09:30:00Z",
                "draining": False,
                "sessions": 12,
                "hosts": 4,
                "streams": {"asking": 0, "waiting": 0, "trying": 1, "open": 40},
                "waiting": 2,
                "queued_bytes": 1200000,
                "longest_queue": {"agent": "4f1c09d2a8b35e6710fd42c98e6ba173", "bytes": 800000},
                "marks": 57,
                "cuts": {"slow_consumer": 1},
                "arrivals": 1,
                "refused": {"timed_out": 12, "unknown_address": 18231},
                "limited": {"bad_tokens": 3},
            }
        ),
    ),
)
