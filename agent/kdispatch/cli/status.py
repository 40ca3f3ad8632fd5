"""``kdispatch status``: what this user's agents do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import typer

from kdispatch.cli.options import Json, Quiet
from kdispatch.cli.output import Output
from kdispatch.cli.screen import Screen
from kdispatch.cli.status_text import described, fitting, summary
from kdispatch.machine.control import ask
from kdispatch.machine.operating_system import HERE
from kdispatch.machine.records import Record, living
from kdispatch_protocol.console import escaped

__all__ = ["app"]

app = typer.Typer()

#: Seconds that an agent has to answer; it waits for the relay's answer for a part of that.
_ANSWERS: Final = 2.0
_EVERY: Final = 1.0  # seconds between two updates
_NONE: Final = "No agent runs here as this user."
_SILENT: Final = "not answering"
_ELSEWHERE: Final = "elsewhere"

#: The fields that a status takes from the record; the others come from the agent's answer, if any.
_RECORDED: Final = ("id", "kind", "relay", "pid", "started", "log")
_UNKNOWN: Final[Mapping[str, Any]] = {
    "state": _SILENT, "connected_for": None, "round_trip": None, "unanswered": None, "next_try": None,
    "idle_limit": None, "age_limit": None, "last_error": None, "drains_for": None, "services": [],
    "stream_count": None, "streams": [],
}  # fmt: skip


@app.command(epilog="Example: kdispatch status")
def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Update every second, until Ctrl-C.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show what your agents here do: session, services, streams. --quiet prints one id a line."""
    output = Output(quiet=quiet, json=json)
    if not watch:
        agents = look(_ANSWERS)
        _print(output, agents)
        if not agents:
            output.note(_NONE)
        return
    try:
        if not (quiet or json) and HERE.is_terminal(sys.stdout):
            _repaint()
        for agents in _looks():
            _print(output, agents, summarily=True)
    except KeyboardInterrupt:  # the usual way to end it
        return


def look(seconds: float) -> list[dict[str, Any]]:
    """All agents of this user, oldest first, each with its answer if that came in time."""
    records = living()
    # Agents elsewhere are not asked: their control address may be another program's here.
    asked = [record for record in records if record.is_here]
    said = ask(asked, seconds, command="status")
    if len(said) < len(asked):
        still = {record.id for record in living()}
        records = [record for record in records if record.id in said or record.id in still]
    return [_merged(record, said.get(record.id, {}).get("agent")) for record in records]


def _merged(record: Record, said: Mapping[str, Any] | None) -> dict[str, Any]:
    recorded = {name: getattr(record, name) for name in _RECORDED}
    recorded |= {"machine": None if record.place is None else record.place.name, "whereabouts": None}
    if said is None:
        place = {"service": record.service, "host": record.host, "address": record.address, "port": record.port}
        unknown = {**_UNKNOWN, "services": [{**place, "offered": None}]}
        if not record.is_here:
            unknown |= {"state": _ELSEWHERE, "whereabouts": record.whereabouts}
        return {**recorded, **unknown}
    return {**recorded, **said}


def _looks() -> Iterator[list[dict[str, Any]]]:
    due = time.monotonic()
    while True:
        yield look(_EVERY)
        now = time.monotonic()
        due = max(due + _EVERY, now)
        time.sleep(due - now)


def _repaint() -> None:
    with Screen() as screen:
        for agents in _looks():
            head = [f"kdispatch status, {time.strftime('%H:%M:%S')}; Ctrl-C ends", ""]
            lines = fitting(agents, screen.height - len(head)) or [_NONE]
            screen.show([*head, *map(escaped, lines)])


def _print(output: Output, agents: list[dict[str, Any]], *, summarily: bool = False) -> None:
    if summarily:
        now = time.strftime("%H:%M:%S")
        plain = [f"{now} {line}" for line in map(summary, agents)] or [f"{now} {_NONE}"]
    else:
        plain = described(agents)
    output.result({"agents": agents}, quiet=[agent["id"] for agent in agents], plain=plain)
