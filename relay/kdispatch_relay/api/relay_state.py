"""What a relay is doing at this moment, for its operator only."""

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
from kdispatch_relay.api.route import Example, Route, Section
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.settings import is_loopback
from kdispatch_relay.sources import is_passed_on
from kdispatch_relay.version import version

__all__ = ["ROUTES"]


_TEXT: Final = """\
Says in figures what the relay is doing at this moment. It answers programs of the relay's own machine, and whoever
shows the operator's token, which is the content of the file that the relay's setting `operator_token_file` names.

A request is the own machine's if its connection comes from a loopback address, its `Host` is one (`127.0.0.1`,
`[::1]` or `localhost`), and no header says that it was forwarded: `Forwarded`, `Via`, `X-Forwarded-...`, `X-Real-IP`
and the like are never believed, they only make a request another's. A local proxy that adds none of them makes all
requests look like the machine's own: let it add one, or keep `/api/v1/relay/` from passing. Caddy adds some by
itself.

`refused` counts by code: addresses and methods that there are not (`unknown_address`, `wrong_method`), names that
the relay does not answer to (`misdirected`), web pages (`not_permitted`), what is not HTTP or not TLS
(`bad_request`), connections that were too many (`busy`), and those that had said nothing of use after 10 s
(`timed_out`). Nothing of it leaves a line in a log."""


class Queue(Answer):
    """The agent for which most waits."""

    agent: str = Field(description="its process id")
    bytes: int = Field(description="what waits for it")


class State(Answer):
    """One relay at this moment."""

    relay: str = Field(description="the relay's id, as agents are told: it is the database's, and stays")
    version: str = Field(description="the version of kdispatch")
    since: Instant = Field(description="since when it runs (RFC 3339, UTC)")
    draining: bool = Field(description="whether its agents are asked to go elsewhere")
    sessions: int = Field(description="agents' sessions")
    hosts: int = Field(description="live hosts, one for each service that a session offers")
    streams: dict[str, int] = Field(
        description="connections by how far they came: `asking` (may they be opened?), `waiting` (for a host), "
        "`trying` (a host is asked), `open`"
    )
    waiting: int = Field(description="ends of connections that wait for their other end after a loss")
    queued_bytes: int = Field(description="data that waits for agents")
    longest_queue: Queue | None = Field(default=None, description="the agent for which most waits, if any waits")
    marks: int = Field(description="DATA frames that were marked since the start, because queues were long")
    cuts: dict[str, int] = Field(description="sessions that the relay has ended since its start, by [code](errors.md)")
    arrivals: int = Field(
        description="connections that are no agent's session, or not yet: that of whoever asks is one"
    )
    refused: dict[str, int] = Field(
        description="what was refused since the start before anything else was done for it, see above"
    )
    limited: dict[str, int] = Field(description="what came too often since the start, [by kind](operations.md#limits)")


async def show_state(call: Call) -> State:
    """Tell it to this machine, or to whoever has the operator's token."""
    _check(call)
    state = call.live.state()
    arrivals = call.request.app[ARRIVALS]
    longest = state.longest
    return State(
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


ROUTES: Final = (
    Route(
        method="GET",
        path=f"{PREFIX}/relay/state",
        name="relay_state",
        handler=show_state,
        section=Section.OPERATOR,
        who="relay.state",
        does="says what the relay is doing",
        text=_TEXT,
        answer=State,
        errors={
            "not_permitted": "from elsewhere, and there is no operator's token",
            "token_refused": "from elsewhere without the token, or a token that is not the operator's",
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
