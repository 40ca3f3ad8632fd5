"""``kdispatch relay``: run a relay. The commands import heavy modules themselves, so that ``--help`` stays fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdispatch_protocol.console import SCHEMA, escaped
from kdispatch_relay.console import errors_told
from kdispatch_relay.operator import commands as operator_cli
from kdispatch_relay.settings import SETTINGS, SIGN_UP, RelaySettings, environment_name

if TYPE_CHECKING:
    import asyncio

__all__ = ["app"]

app = typer.Typer(name="relay", no_args_is_help=True)
app.add_typer(operator_cli.app, name="admin")

_DEFAULTS = RelaySettings()


def _count(value: str | int) -> int:
    """Parse a limit: a number, or off."""
    if value == "off":
        return 0
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a number nor off.") from None


def _option(name: str, metavar: str | None = None, *, short: str | None = None, **more: Any) -> Any:
    return typer.Option(
        f"--{name.replace('_', '-')}",
        *([short] if short else []),
        envvar=environment_name(name),
        help=SETTINGS[name].metadata["help"],
        metavar=metavar,
        **more,
    )


def _limit(name: str) -> Any:
    return _option(name, "N", parser=_count)


@app.callback()
def relay() -> None:
    """Run a relay: the server between hosts and clients."""


@app.command(epilog="Example: kdispatch relay serve --listen 127.0.0.1:8443")
def serve(
    *,
    listen: Annotated[str, _option("listen", "HOST:PORT")] = _DEFAULTS.listen,
    database: Annotated[str, _option("database", "URL")] = _DEFAULTS.database,
    database_wait: Annotated[float, _option("database_wait", "SECONDS")] = _DEFAULTS.database_wait,
    tls_cert: Annotated[Path | None, _option("tls_cert", "FILE")] = _DEFAULTS.tls_cert,
    tls_key: Annotated[Path | None, _option("tls_key", "FILE")] = _DEFAULTS.tls_key,
    insecure_plaintext: Annotated[bool, _option("insecure_plaintext")] = _DEFAULTS.insecure_plaintext,
    trusted_proxy: Annotated[str, _option("trusted_proxy", "ADDRESSES")] = _DEFAULTS.trusted_proxy,
    allowed_host: Annotated[str, _option("allowed_host", "NAMES")] = _DEFAULTS.allowed_host,
    reuse_port: Annotated[bool, _option("reuse_port")] = _DEFAULTS.reuse_port,
    drain_time: Annotated[float, _option("drain_time", "SECONDS")] = _DEFAULTS.drain_time,
    sign_up: Annotated[str, _option("sign_up", "|".join(SIGN_UP))] = _DEFAULTS.sign_up,
    limit_sign_ups: Annotated[int, _limit("limit_sign_ups")] = _DEFAULTS.limit_sign_ups,
    limit_bad_tokens: Annotated[int, _limit("limit_bad_tokens")] = _DEFAULTS.limit_bad_tokens,
    limit_requests: Annotated[int, _limit("limit_requests")] = _DEFAULTS.limit_requests,
    limit_failed_opens: Annotated[int, _limit("limit_failed_opens")] = _DEFAULTS.limit_failed_opens,
    limit_idle_frames: Annotated[int, _limit("limit_idle_frames")] = _DEFAULTS.limit_idle_frames,
    limit_asking: Annotated[int, _limit("limit_asking")] = _DEFAULTS.limit_asking,
    limit_source_sessions: Annotated[int, _limit("limit_source_sessions")] = _DEFAULTS.limit_source_sessions,
    limit_sessions: Annotated[int, _limit("limit_sessions")] = _DEFAULTS.limit_sessions,
    limit_public_streams: Annotated[int, _limit("limit_public_streams")] = _DEFAULTS.limit_public_streams,
    limit_source_streams: Annotated[int, _limit("limit_source_streams")] = _DEFAULTS.limit_source_streams,
    operator_token_file: Annotated[Path | None, _option("operator_token_file", "FILE")] = _DEFAULTS.operator_token_file,
    audit_days: Annotated[int, _option("audit_days", "DAYS")] = _DEFAULTS.audit_days,
    log_format: Annotated[str, _option("log_format", "text|json")] = _DEFAULTS.log_format,
    verbose: Annotated[bool, _option("verbose", short="-v")] = _DEFAULTS.verbose,
    no_uvloop: Annotated[
        bool, typer.Option("--no-uvloop", envvar="KDISPATCH_NO_UVLOOP", help="Use Python's own event loop.")
    ] = False,
) -> None:
    """Serve agents and the REST API until SIGINT or SIGTERM; SIGHUP reads the certificate again."""
    import asyncio  # noqa: PLC0415 - heavy

    with errors_told(as_json=log_format == "json"):
        settings = RelaySettings(
            listen=listen,
            database=database,
            database_wait=database_wait,
            tls_cert=tls_cert,
            tls_key=tls_key,
            insecure_plaintext=insecure_plaintext,
            trusted_proxy=trusted_proxy,
            allowed_host=allowed_host,
            reuse_port=reuse_port,
            drain_time=drain_time,
            sign_up=sign_up,
            limit_sign_ups=limit_sign_ups,
            limit_bad_tokens=limit_bad_tokens,
            limit_requests=limit_requests,
            limit_failed_opens=limit_failed_opens,
            limit_idle_frames=limit_idle_frames,
            limit_asking=limit_asking,
            limit_source_sessions=limit_source_sessions,
            limit_sessions=limit_sessions,
            limit_public_streams=limit_public_streams,
            limit_source_streams=limit_source_streams,
            operator_token_file=operator_token_file,
            audit_days=audit_days,
            log_format=log_format,
            verbose=verbose,
        )
        from kdispatch_relay.serving import serve as run  # noqa: PLC0415 - heavy

        with asyncio.Runner(loop_factory=_loop_factory(no_uvloop=no_uvloop)) as runner:
            runner.run(run(settings))


@app.command(epilog="Example: kdispatch relay migrate --database /var/lib/kdispatch/relay.db")
def migrate(
    *,
    database: Annotated[str, _option("database", "URL")] = _DEFAULTS.database,
    database_wait: Annotated[float, _option("database_wait", "SECONDS")] = _DEFAULTS.database_wait,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the bare revision.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bring the database up to date; a relay does so itself when it starts."""
    import asyncio  # noqa: PLC0415 - heavy

    with errors_told(as_json=as_json):
        RelaySettings(database=database, database_wait=database_wait)
        before, after = asyncio.run(_migrate(database, database_wait))
    if as_json:
        typer.echo(json.dumps({"schema": SCHEMA, "from": before, "to": after, "changed": before != after}))
    elif quiet:
        typer.echo(after)
    elif before == after:
        typer.echo(f"The database is up to date, at revision {after}.")
    else:
        typer.echo(f"The database was brought from {f'revision {before}' if before else 'empty'} to revision {after}.")


@app.command(epilog="Example: kdispatch relay state --json")
def state(
    *,
    listen: Annotated[str, _option("listen", "HOST:PORT")] = _DEFAULTS.listen,
    tls_cert: Annotated[Path | None, _option("tls_cert", "FILE")] = _DEFAULTS.tls_cert,
    operator_token_file: Annotated[Path | None, _option("operator_token_file", "FILE")] = _DEFAULTS.operator_token_file,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print one word: serving or draining.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what the relay on this machine is doing, in figures."""
    from kdispatch_relay.operator.view import lines, read_state  # noqa: PLC0415 - heavy

    with errors_told(as_json=as_json):
        found = read_state(listen, tls_cert, operator_token_file)
    if as_json:
        typer.echo(json.dumps({"schema": SCHEMA, **found}))
    elif quiet:
        typer.echo("draining" if found.get("draining") else "serving")
    else:
        for line in lines(found):
            typer.echo(escaped(line))


async def _migrate(location: str, wait: float) -> tuple[str | None, str | None]:
    from kdispatch_relay.store.database import Database  # noqa: PLC0415 - heavy

    database = Database(location, wait=wait)
    try:
        return await database.start()
    finally:
        await database.close()


def _loop_factory(*, no_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop if it is installed and wanted; ``None`` for Python's own."""
    if no_uvloop:
        return None
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory
