"""The result of ``kdispatch status`` as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kdispatch.cli.output import table

__all__ = ["described", "fitting", "summary"]

_SHOWN: Final = 8  # characters of a stream's id: enough to distinguish streams, and as in logs
_AROUND: Final = 2  # lines of a table besides its rows
_LATE: Final = 1.0  # seconds without an answer to a PING that are worth a note
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_TIMES: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def described(agents: Sequence[Mapping[str, Any]], streams: int | None = None) -> list[str]:
    """A few lines for each agent, and a table of its streams, or of the first ``streams`` of them."""
    return [line for agent in agents for line in _agent(agent, streams)]


def fitting(agents: Sequence[Mapping[str, Any]], height: int) -> list[str]:
    """The same, with as many streams of each agent as let all agents fit into ``height`` lines."""
    free = height - len(described(agents, 0))
    tables = sum(bool(agent["stream_count"]) for agent in agents)
    return described(agents, max(0, free // max(1, tables) - _AROUND))


def summary(agent: Mapping[str, Any]) -> str:
    """One line for an agent."""
    names = ", ".join(service["service"] for service in agent["services"])
    parts = [*_session(agent)]
    if agent["stream_count"] is not None:
        parts.append(f"{agent['stream_count']} stream{'s' * (agent['stream_count'] != 1)}")
    return f"{agent['id']} {agent['kind']} of {names}: {', '.join(parts)}"


def _agent(agent: Mapping[str, Any], streams: int | None) -> Iterator[str]:
    for service in agent["services"]:
        yield f"{agent['id']}  {agent['kind']} of {service['service']}, {service['address']}:{service['port']}"
        if service["host"] is not None:
            listed = {None: "", True: ", offered", False: ", not offered"}[service["offered"]]
            yield f"  host     {service['host']}{listed}"
    yield f"  relay    {', '.join([agent['relay'], *_session(agent)])}"
    if limits := [*_limits(agent)]:
        yield f"  network  cuts sessions that are {' or '.join(limits)}"
    if error := agent["last_error"]:
        yield f"  error    {_time(error['ago'])} ago: {error['text']} [{error['code']}]"
    if agent["drains_for"] is not None:
        yield f"  draining for {_time(agent['drains_for'])} at most: no new streams"
    if agent["stream_count"]:
        yield f"  streams  {agent['stream_count']}"
        yield from (f"    {line}" for line in _streams(agent, agent["streams"][:streams]))


def _session(agent: Mapping[str, Any]) -> Iterator[str]:
    """The state, and its details."""
    if agent["stream_count"] is None and agent["whereabouts"] is not None:
        yield f"{agent['state']}: {agent['whereabouts']}, if it runs"
        return
    if agent["stream_count"] is None:
        yield f"{agent['state']}: process {agent['pid']} says nothing"
        return
    yield agent["state"] if agent["connected_for"] is None else f"{agent['state']} for {_time(agent['connected_for'])}"
    if agent["next_try"] is not None:
        yield f"next try in {agent['next_try']:.1f} s"
    if agent["unanswered"] is not None and agent["unanswered"] > _LATE:
        yield f"no answer for {_time(agent['unanswered'])}"
    elif agent["round_trip"] is not None:
        yield f"round trip {agent['round_trip'] * 1000:.1f} ms"


def _limits(agent: Mapping[str, Any]) -> Iterator[str]:
    """The limits learned about the path to the relay."""
    if agent["idle_limit"] is not None:
        yield f"silent for {_time(agent['idle_limit'])}"
    if agent["age_limit"] is not None:
        yield f"{_time(agent['age_limit'])} old"


def _streams(agent: Mapping[str, Any], streams: Sequence[Mapping[str, Any]]) -> list[str]:
    hosts = agent["kind"] == "host"
    rows = [
        (
            stream["id"][:_SHOWN],
            stream["state"] if stream["detached"] is None else _detached(stream),
            _size(stream["sent"]),
            _size(stream["received"]),
            "-" if stream["age"] is None else _time(stream["age"]),
            stream["peer" if hosts else "host"] or "-",
        )
        for stream in streams
    ]
    lines = table(("STREAM", "STATE", "SENT", "RECEIVED", "AGE", "CLIENT" if hosts else "HOST"), rows)
    more = agent["stream_count"] - len(rows)
    return [*lines, f"and {more} more"] if lines and more else lines


def _detached(stream: Mapping[str, Any]) -> str:
    """How long the stream has waited, and the time left."""
    waited = f"detached {_time(stream['detached'])}"
    left = stream.get("expires_in")  # agents from before an upgrade do not send it
    return waited if left is None else f"{waited}, {left:.0f} s left"


def _time(seconds: float) -> str:
    for size, unit in _TIMES:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _size(count: float) -> str:
    unit, *larger = _UNITS
    while count >= 1024 and larger:
        count /= 1024
        unit, *larger = larger
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
