"""``kdispatch agent``: offer a local TCP service, or reach an offered one."""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Final

import typer

from kdispatch.addresses import bare
from kdispatch.cli.interruption import Interruption
from kdispatch.cli.lifetime import Life, in_slot, recorded, until_interrupted
from kdispatch.cli.options import (
    Grace,
    Json,
    OpenWait,
    Quiet,
    Rotate,
    Service,
    ServiceOption,
    Token,
    TokenFile,
    one_service,
)
from kdispatch.cli.output import Output, run_async
from kdispatch.cli.reach import Reach, reaches_relay
from kdispatch.cli.running import Resets, RunSetup, Start, detach, show
from kdispatch.machine.control import ask
from kdispatch.machine.operating_system import HERE
from kdispatch.machine.records import Ending, Record, find, living, record_file
from kdispatch.running_log import RunningLog
from kdispatch.settings import setting_of
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError

__all__ = ["app"]

app = typer.Typer(help="Offer a local TCP service, or reach one that is offered.")

_Wait = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait at the start; 0 is not at all.")
]
#: Seconds. Docker, Podman and supervisord kill 10 s after SIGTERM; before that, peers of running streams must be told.
_DRAIN_TIME: Final = 8.0
_Drain = Annotated[
    float,
    typer.Option("--drain-time", min=0, metavar="SECONDS", help="How long running connections may go on after Ctrl-C."),
]
_Detach = Annotated[
    bool, typer.Option("--detach", help="Return when it is up, and run on in the background; see 'agent stop'.")
]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log the end of every connection, too.")]
_log_format = setting_of("log_format")
_LogFormat = Annotated[
    str | None,
    typer.Option(
        _log_format.flag,
        metavar="FORMAT",
        help=f"{_log_format.text} {_log_format.unit}. [{_log_format.env}]",
        show_default=False,
    ),
]
#: The id of an agent started by another command, which sends the token on standard input.
_Background = Annotated[str | None, typer.Option("--background", hidden=True)]


@app.command(epilog="Example: kdispatch agent host ann/web --port 8080")
@reaches_relay
def host(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The local port to offer.")],
    address: Annotated[str, typer.Option("--address", help="Where the port is.")] = "localhost",
    wait: _Wait = 10.0,
    drain_time: _Drain = _DRAIN_TIME,
    grace: Grace = None,
    rotate: Rotate = None,
    exit_when_closed: Annotated[
        bool, typer.Option("--exit-when-closed", help="End when the local port closes, instead of waiting for it.")
    ] = False,
    detached: _Detach = False,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
    log_format: _LogFormat = None,
    verbose: _Verbose = False,
    background: _Background = None,
) -> None:
    """Offer a local TCP port as a host of a service, until Ctrl-C."""
    start = Start(
        kind="host", service=one_service(service, service_option), address=bare(address), port=port, wait=wait,
        drain_time=drain_time, grace=grace, rotate=rotate, exit_when_closed=exit_when_closed, reach=reach, token=token,
        token_file=token_file, quiet=quiet, json=json, log_format=log_format, verbose=verbose, background=background,
    )  # fmt: skip
    _run(start, _host, detached=detached)


async def _host(start: Start, access: RunSetup, log: RunningLog, output: Output, interruption: Interruption) -> int:
    from kdispatch.host import Host, LocalPort  # noqa: PLC0415 - heavy

    assert access.token is not None, "who hosts has a token"
    local = LocalPort(start.address, start.port)
    await local.check(start.wait, log)
    async with in_slot(start, access, log) as (identity, claim):
        offer = Host(
            access.dialer(), access.service, access.token, local, log=log, limits=access.limits, identity=identity
        )  # fmt: skip
        local.host = offer
        place = {"address": local.address, "port": start.port}
        life = Life(
            start=start,
            log=log,
            interruption=interruption,
            uplink=offer.uplink,
            services=lambda: [{"service": offer.service, "host": offer.id, **place, "offered": offer.listed}],
            take_no_more=offer.withdraw,
        )
        fields = {**place, "host": offer.id, "withdraw_token": offer.withdraw_token}
        async with recorded(life, access, **fields) as (result, held):
            try:
                await offer.start(start.wait)
                await claim()
                show(output, result)
                watch = local.watch(exit_when_closed=start.exit_when_closed, drain=start.drain_time)
                return await until_interrupted(life, held, [offer.ended(start.drain_time), watch])
            finally:
                await offer.stop()


@app.command(epilog="Example: kdispatch agent connect ann/web --port 9090")
@reaches_relay
def connect(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The local port to listen on; 0 takes a free one.")
    ] = 0,
    address: Annotated[str, typer.Option("--address", help="The local address to listen on.")] = "127.0.0.1",
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="Connect only to this host, if the service allows it: its id, or its first 8 or more digits.",
            show_default=False,
        ),
    ] = None,
    wait: _Wait = 10.0,
    drain_time: _Drain = _DRAIN_TIME,
    grace: Grace = None,
    rotate: Rotate = None,
    open_wait: OpenWait = None,
    detached: _Detach = False,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
    log_format: _LogFormat = None,
    verbose: _Verbose = False,
    background: _Background = None,
) -> None:
    """Reach a service by a local port, until Ctrl-C; each connection goes to a random live host."""
    start = Start(
        kind="connect", service=one_service(service, service_option), address=bare(address), port=port, wait=wait,
        drain_time=drain_time, grace=grace, rotate=rotate, open_wait=open_wait, reach=reach, token=token,
        token_file=token_file, quiet=quiet, json=json, log_format=log_format, verbose=verbose, background=background,
        host=_host_id(host),
    )  # fmt: skip
    _run(start, _connect, detached=detached)


async def _connect(start: Start, access: RunSetup, log: RunningLog, output: Output, interruption: Interruption) -> int:
    from kdispatch.client import Client, LocalListener  # noqa: PLC0415 - heavy
    from kdispatch.local.front import one_service as only  # noqa: PLC0415 - as the client

    name = access.service
    async with in_slot(start, access, log) as (identity, claim):
        failed = Resets(name, log)
        client = Client(
            access.dialer(), token=access.token, log=log, failed=failed, limits=access.limits, identity=identity
        )  # fmt: skip
        listener = LocalListener(client, only(name))
        await listener.listen(start.address, start.port)
        with contextlib.closing(listener):
            place = {"address": listener.address, "port": listener.port}
            life = Life(
                start=start,
                log=log,
                interruption=interruption,
                uplink=client.uplink,
                services=lambda: [{"service": name, "host": listener.host, **place, "offered": None}],
                take_no_more=listener.close,
            )
            async with recorded(life, access, **place, addresses=listener.addresses) as (result, held):
                try:
                    listener.host = await client.wait_for_host(name, start.wait, start.host)
                    await client.uplink.start(start.wait)
                    await claim()
                    listener.serve()
                    show(output, result)
                    return await until_interrupted(life, held, [client.ended()])
                finally:
                    await client.stop()


def _host_id(typed: str | None) -> str | None:
    """Check a host's id or its prefix; raises ``bad_request`` if it is invalid."""
    if typed is not None and re.fullmatch(r"[0-9a-f]{8,32}", typed) is None:
        hint = "Take it from 'kdispatch service hosts SERVICE'."
        raise SetupError("bad_request", f"{typed[:80]!r} is neither a host's id nor 8 digits of one.", hint=hint)
    return typed


_Main = Callable[[Start, RunSetup, RunningLog, Output, Interruption], Coroutine[Any, Any, int]]


def _run(start: Start, main: _Main, *, detached: bool) -> None:
    if detached:
        detach(start)
        return
    output = start.output
    try:
        settings = start.load_settings()
        log = start.log(settings)
        # This may ask for a token: outside of the event loop, where Ctrl-C ends the program at once.
        access = start.access(output, settings)
    except KdispatchError as error:
        raise SystemExit(output.failed(error)) from None
    interruption = Interruption(drains=True)
    run_async(lambda: main(start, access, log, output, interruption), output, interruption)


@app.command(epilog="Example: kdispatch agent stop ann/web")
def stop(
    agent: Annotated[
        str, typer.Argument(metavar="ID|SERVICE", help="The id of an agent or host, its first digits, or a service.")
    ],
    *,
    now: Annotated[bool, typer.Option("--now", help="End at once, with all running connections.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """End agents that run here, in the background or not; running connections may finish first."""
    output = Output(quiet=quiet, json=json)
    found = find(living(), agent)
    meant = [record for record in found if record.is_here]
    elsewhere = [record for record in found if record not in meant]
    if not meant:
        raise _is_elsewhere(elsewhere)
    for record in elsewhere:
        output.warn(f"Agent {record.id} {record.whereabouts}, and is left alone.", "unknown_agent")
    left = _end(meant, now=now)
    stopped = [record for record in meant if record not in left]
    if stopped or not left:
        output.result(
            {
                "stopped": [{name: getattr(record, name) for name in _STOPPED} for record in stopped],
                "elsewhere": [record.id for record in elsewhere],
            },
            quiet=[record.id for record in stopped],
            plain=[f"stopped {record.id}: {record.kind} of {record.service}" for record in stopped],
        )
    if left:
        ids = " ".join(record.id for record in left)
        text = f"{ids} did not end in time: connections still run, or the process does not answer."
        raise SetupError("busy", text, hint=f"Wait, or end it at once: kdispatch agent stop --now {left[0].id}")


def _is_elsewhere(records: list[Record]) -> SetupError:
    """The error for agents of other places only: their pids mean other processes here."""
    which = "; ".join(f"{record.id} {record.whereabouts}" for record in records)
    files = " ".join(shlex.quote(str(record_file(record.id))) for record in records)
    return SetupError(
        "unknown_agent",
        f"No such agent runs here, but the state directory has records of others: {which}.",
        hint=f"Stop it there: kdispatch agent stop {records[0].id}; if that machine is gone for good: rm {files}",
    )


_STOPPED: Final = ("id", "kind", "service", "host", "address", "port", "pid", "log")
_ANSWERS: Final = 2.0  # seconds for a running agent to confirm the request
_LAST_WORDS: Final = 3.0  # seconds for an agent that must end at once
_PATIENCE: Final = 5.0  # seconds beyond an agent's drain time
_LOOK_EVERY: Final = 0.02


def _end(meant: list[Record], *, now: bool) -> list[Record]:
    """Ask agents to end, and wait for that; returns those that did not end."""
    endings = {record.id: Ending(record) for record in meant}
    try:
        heard = ask(meant, _ANSWERS, command="stop", now=now)
        left = [record for record in meant if not endings[record.id].gone()]
        if now:
            left = _wait(left, endings, _LAST_WORDS if heard else 0)
        stop = HERE.end_now if now else HERE.ask_to_stop
        asked = set(heard)
        for record in left:
            # If no socket answers, use the system's means.
            if (now or not (record.draining or record.id in heard)) and stop(record.pid, record.process_started):
                asked.add(record.id)
        drain = max((r.drain_time for r in left if r.draining or r.id in asked), default=0.0)
        return _wait(left, endings, _PATIENCE + (0 if now else drain))
    finally:
        for ending in endings.values():
            ending.close()


def _wait(left: list[Record], endings: Mapping[str, Ending], seconds: float) -> list[Record]:
    """Wait at most ``seconds`` until these are gone; returns those that are not."""
    deadline = time.monotonic() + seconds
    while left := [record for record in left if not endings[record.id].gone()]:
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_EVERY)
    return left
