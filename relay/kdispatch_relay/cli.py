"""``kdispatch relay``: run a relay. Heavy imports wait inside the commands, so that ``--help`` stays quick."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.settings import SETTINGS, Settings, environment_name

__all__ = ["app"]

app = typer.Typer(name="relay", no_args_is_help=True)

_DEFAULTS = Settings()


def _option(name: str, metavar: str | None = None) -> Any:
    return typer.Option(
        f"--{name.replace('_', '-')}",
        envvar=environment_name(name),
        help=SETTINGS[name].metadata["help"],
        metavar=metavar,
    )


@app.callback()
def relay() -> None:
    """Run a relay: the server between hosts and clients."""


@app.command()
def serve(
    *,
    listen: Annotated[str, _option("listen", "HOST:PORT")] = _DEFAULTS.listen,
    database: Annotated[str, _option("database", "URL")] = _DEFAULTS.database,
    database_wait: Annotated[float, _option("database_wait", "SECONDS")] = _DEFAULTS.database_wait,
    tls_cert: Annotated[Path | None, _option("tls_cert", "FILE")] = _DEFAULTS.tls_cert,
    tls_key: Annotated[Path | None, _option("tls_key", "FILE")] = _DEFAULTS.tls_key,
    insecure_plaintext: Annotated[bool, _option("insecure_plaintext")] = _DEFAULTS.insecure_plaintext,
    no_uvloop: Annotated[
        bool, typer.Option("--no-uvloop", envvar="KDISPATCH_NO_UVLOOP", help="Use Python's own event loop.")
    ] = False,
) -> None:
    """Serve agents and the REST API until SIGINT or SIGTERM.

    Example: kdispatch relay serve --listen 127.0.0.1:8443
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings(
            listen=listen,
            database=database,
            database_wait=database_wait,
            tls_cert=tls_cert,
            tls_key=tls_key,
            insecure_plaintext=insecure_plaintext,
        )
        with asyncio.Runner(loop_factory=_loop_factory(no_uvloop=no_uvloop)) as runner:
            runner.run(_serve(settings))
    except KdispatchError as error:
        typer.echo(f"kdispatch: {error.text} [{error.code}]", err=True)
        typer.echo(f"  where: relay\n  try:   {error.info.hint}", err=True)
        raise typer.Exit(error.info.exit or 1) from None


async def _serve(settings: Settings) -> None:
    from kdispatch_relay.server import running_relay  # noqa: PLC0415 - heavy
    from kdispatch_relay.switch.gate import Gate  # noqa: PLC0415 - heavy

    stop = asyncio.Event()
    _set_on_signals(stop)
    async with running_relay(settings, partial(Gate, relay_id=secrets.token_hex(16))) as running:
        typer.echo(f"kdispatch relay listening on {running.url}", err=True)
        await stop.wait()


def _set_on_signals(stop: asyncio.Event) -> None:
    # signal.signal and not the loop's add_signal_handler, which Windows does not have.
    loop = asyncio.get_running_loop()

    def handle(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once
        loop.call_soon_threadsafe(stop.set)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _loop_factory(*, no_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster loop where it is installed and wanted, else ``None`` for Python's own."""
    if no_uvloop:
        return None
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory
