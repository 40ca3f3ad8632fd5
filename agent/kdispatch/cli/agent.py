"""``kdispatch agent``: offer a local TCP service, or reach one that is offered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

import typer

from kdispatch.cli.options import (
    InsecurePlaintext,
    Json,
    Quiet,
    Relay,
    Service,
    ServiceOption,
    Token,
    TokenFile,
    one_service,
)
from kdispatch.cli.output import Output, run_async
from kdispatch.credentials import Credentials
from kdispatch.settings import load_settings

__all__ = ["app"]

app = typer.Typer(help="Offer a local TCP service, or reach one that is offered.")

_Wait = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait at the start; 0 is not at all.")
]
_Drain = Annotated[
    float,
    typer.Option("--drain-time", min=0, metavar="SECONDS", help="How long running connections may go on after Ctrl-C."),
]
#: Ends of streams that a person need not hear of: one of the two programs just went away.
_SILENT: Final = frozenset({"cancelled"})


@app.command(epilog="Example: kdispatch agent host ann/web --port 8080")
def host(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The local port to offer.")],
    address: Annotated[str, typer.Option("--address", help="Where the port is.")] = "127.0.0.1",
    wait: _Wait = 10.0,
    drain_time: _Drain = 30.0,
    exit_when_closed: Annotated[
        bool, typer.Option("--exit-when-closed", help="End when the local port closes, instead of waiting for it.")
    ] = False,
    relay: Relay = None,
    insecure_plaintext: InsecurePlaintext = None,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Offer a local TCP port as a host of a service, until Ctrl-C."""
    output = Output(quiet=quiet, json=json)

    async def main() -> int:
        from kdispatch.host import Host, LocalPort  # noqa: PLC0415 - heavy

        url = load_settings(relay=relay, insecure_plaintext=insecure_plaintext).relay_url
        credentials = Credentials()
        name = credentials.full_name(url, one_service(service, service_option))
        secret = credentials.token_for_host(url, name, token=token, token_file=token_file, warn=output.warn)
        local = LocalPort(address, port)
        await local.check()
        offer = Host(url, name, secret, local, note=output.note)
        local.host = offer
        await offer.start(wait)
        output.result(
            {"service": name, "host": offer.id, "address": address, "port": port},
            quiet=[offer.id],
            plain=[f"{address}:{port} is offered as {name} (host {offer.id})"],
        )
        return await _until_interrupted(
            [offer.failed(), local.watch(offer, output.note, exit_when_closed=exit_when_closed)],
            drain=lambda: offer.drain(drain_time),
            stop=offer.stop,
            note=output.note,
        )

    run_async(main, output)


@app.command(epilog="Example: kdispatch agent connect ann/web --port 9090")
def connect(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The local port to listen on; 0 takes a free one.")
    ] = 0,
    address: Annotated[str, typer.Option("--address", help="The local address to listen on.")] = "127.0.0.1",
    wait: _Wait = 10.0,
    drain_time: _Drain = 30.0,
    relay: Relay = None,
    insecure_plaintext: InsecurePlaintext = None,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Reach a service by a local port, until Ctrl-C; each connection goes to a random live host."""
    output = Output(quiet=quiet, json=json)

    async def main() -> int:
        from kdispatch.client import Client, LocalListener  # noqa: PLC0415 - heavy

        url = load_settings(relay=relay, insecure_plaintext=insecure_plaintext).relay_url
        credentials = Credentials()
        name = credentials.full_name(url, one_service(service, service_option))
        secret = credentials.token_for_client(url, name, token=token, token_file=token_file, warn=output.warn)

        def failed(code: str, text: str) -> None:
            if code not in _SILENT:
                output.warn(f"A connection to {name} was reset: {text}", code)

        client = Client(url, token=secret, note=output.note, failed=failed)
        listener = LocalListener(client, name)
        await listener.bind(address, port)
        try:
            await client.wait_for_host(name, wait)
            await client.uplink.start(wait)
        except BaseException:
            listener.close()
            raise
        await listener.listen()
        output.result(
            {"service": name, "address": listener.address, "port": listener.port},
            quiet=[str(listener.port)],
            plain=[f"{name} is reached by {listener.address}:{listener.port}"],
        )

        async def drain() -> None:
            listener.close()
            await client.driver.drain(drain_time)

        return await _until_interrupted([client.uplink.failed()], drain=drain, stop=client.stop, note=output.note)

    run_async(main, output)


async def _until_interrupted(
    work: list[Coroutine[Any, Any, None]],
    *,
    drain: Callable[[], Coroutine[Any, Any, None]],
    stop: Callable[[], Coroutine[Any, Any, None]],
    note: Callable[[str], None],
) -> int:
    """Run until one of ``work`` fails, which is raised, or until the first signal, which drains; returns 0 then."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except asyncio.CancelledError:
        note("Draining: no new connections; Ctrl-C again ends the running ones.")
        await drain()
        return 0
    finally:
        await stop()
    return 0
