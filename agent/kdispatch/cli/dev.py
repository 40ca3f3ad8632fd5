"""``kdispatch dev``: relay, host and client in one process on loopback, for a first try."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kdispatch.cli.interruption import uncancel_current_task
from kdispatch.cli.options import Json, Quiet
from kdispatch.cli.output import Output, run_async
from kdispatch.cli.running import Resets, agent_log
from kdispatch.credentials import Credentials
from kdispatch.machine.operating_system import HERE
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import SetupError, remember_relay

if TYPE_CHECKING:
    import asyncio

__all__ = ["app"]

app = typer.Typer()

PARTS: Final = "kdispatch.parts"  #: the entry-point group of the relay, if it is installed
_START: Final = 10.0  # seconds; everything is in this process
_HELLO: Final = b"hello from kdispatch dev\n"

_PORT: Final = {"min": 0, "max": 65535, "show_default": False}


@app.command(epilog="Example: kdispatch dev")
def dev(
    *,
    port: Annotated[int, typer.Option("--port", help="The local port to offer; else a small web server.", **_PORT)] = 0,
    connect_port: Annotated[int, typer.Option("--connect-port", help="Where to reach it; a free one.", **_PORT)] = 0,
    relay_port: Annotated[int, typer.Option("--relay-port", help="The relay's port; else a free one.", **_PORT)] = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Try everything on this machine: relay, host and client in one, until Ctrl-C. --quiet prints the port."""
    output = Output(quiet=quiet, json=json)
    relay_for_dev = _relay_part()
    with tempfile.TemporaryDirectory(prefix="kdispatch-dev-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        # Tokens and settings of this trial only. The user's own are neither read nor changed.
        os.environ["KDISPATCH_CONFIG_DIR"] = str(directory / "config")

        async def main() -> int:
            async with AsyncExitStack() as stack:
                url = RelayUrl.parse(await stack.enter_async_context(relay_for_dev(directory, relay_port)))
                await _run(stack, output, url, port, connect_port)
            return 0

        run_async(main, output)


async def _run(stack: AsyncExitStack, output: Output, url: RelayUrl, port: int, connect_port: int) -> None:
    import asyncio  # noqa: PLC0415 - see run_async

    from kdispatch.client import Client, LocalListener  # noqa: PLC0415 - heavy
    from kdispatch.host import Host, LocalPort  # noqa: PLC0415 - heavy
    from kdispatch.local.front import one_service  # noqa: PLC0415 - as the client
    from kdispatch.network.dialer import Dialer  # noqa: PLC0415 - heavy

    log = agent_log("json" if output.json else "text", quiet=output.quiet)
    if not port:
        server = await asyncio.start_server(_hello, "127.0.0.1", 0)
        stack.callback(server.close)
        port = server.sockets[0].getsockname()[1]
    local = LocalPort("localhost", port)
    await local.check()
    service, token = await _sign_up(url)
    host = Host(Dialer(url), service, token, local, log=log)
    local.host = host
    await host.start(_START)
    stack.push_async_callback(host.stop)

    client = Client(Dialer(url), log=log, failed=Resets(service, log))
    listener = LocalListener(client, one_service(service))
    await listener.listen("127.0.0.1", connect_port)
    stack.callback(listener.close)
    await client.uplink.start(_START)
    stack.push_async_callback(client.stop)
    listener.serve()
    _tell(output, url, service, port, listener.port)
    try:
        await asyncio.gather(host.failed(), client.uplink.failed(), local.watch())
    except asyncio.CancelledError:
        uncancel_current_task()
        output.note("Ending; everything that dev created is removed.")


async def _sign_up(url: RelayUrl) -> tuple[str, str]:
    """Create handle and service, and store them for other terminals; returns the service and its token."""
    import asyncio  # noqa: PLC0415 - see run_async

    from kdispatch.network.dialer import Dialer  # noqa: PLC0415 - heavy
    from kdispatch.rest.client import RestClient  # noqa: PLC0415 - heavy

    async with RestClient(Dialer(url)) as rest:
        signed = await rest.sign_up("dev")
        rest.token = signed.token
        created = await rest.create_service("app")

    def remember() -> None:
        credentials = Credentials()
        credentials.store_admin(url, signed.handle, signed.token)
        credentials.store_service(url, created.service, created.token)
        remember_relay(url)

    # The relay runs on this loop, too, so no disk write may block it.
    await asyncio.to_thread(remember)
    return created.service, created.token


def _tell(output: Output, url: RelayUrl, service: str, port: int, connect_port: int) -> None:
    config = os.environ["KDISPATCH_CONFIG_DIR"]
    here = f"http://127.0.0.1:{connect_port}"
    output.result(
        {
            "service": service,
            "relay": str(url),
            "port": port,
            "connect_port": connect_port,
            "url": here,
            "config": config,
        },
        quiet=[str(connect_port)],
        plain=[f"{service} (127.0.0.1:{port}) is reached by {here}"],
    )
    output.note(
        "From another terminal:",
        f"  {_exported(KDISPATCH_CONFIG_DIR=config, KDISPATCH_RELAY=str(url))}",
        "Ctrl-C ends everything and removes what dev created.",
    )


def _exported(**variables: str) -> str:
    """The line that sets these variables in the user's shell."""
    if HERE.powershell:
        doubled = {name: value.replace("'", "''") for name, value in variables.items()}
        return "; ".join(f"$env:{name} = '{value}'" for name, value in doubled.items())
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def _relay_part() -> Any:
    """The function that starts the relay; raises ``not_installed``."""
    hint = "pip install 'kdispatch[relay]'"
    for point in importlib.metadata.entry_points(group=PARTS, name="relay"):
        try:
            return point.load()
        except ModuleNotFoundError as error:
            text = f"'kdispatch dev' needs the Python package {error.name}, which is not installed."
            raise SetupError("not_installed", text, hint=hint) from error
    raise SetupError("not_installed", "'kdispatch dev' needs the relay, which is not installed.", hint=hint)


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request of any HTTP client."""
    import asyncio  # noqa: PLC0415 - see run_async

    try:
        await reader.readuntil(b"\r\n\r\n")
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(_HELLO)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + _HELLO)
        await writer.drain()
    except (OSError, EOFError, asyncio.LimitOverrunError):
        pass  # the client left, or does not speak HTTP
    finally:
        writer.close()
