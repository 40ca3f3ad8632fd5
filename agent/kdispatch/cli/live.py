"""``kdispatch service hosts``, ``clients`` and ``withdraw``: who hosts a service now, and who uses it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kdispatch.cli.account import Caller
from kdispatch.cli.durations import moment
from kdispatch.cli.lists import print_list
from kdispatch.cli.options import Json, Quiet, Service, ServiceOption, Token, TokenFile, one_service
from kdispatch.cli.output import Output, Table, run_async
from kdispatch.cli.reach import Reach, reaches_relay

if TYPE_CHECKING:
    from kdispatch.rest.answers import HostInfo, TokenName

__all__ = ["app"]

app = typer.Typer()


@app.command(epilog="Example: kdispatch service hosts ann/web --quiet")
@reaches_relay
def hosts(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List a service's live hosts. --quiet prints one id a line."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            full_name = await caller.as_reader(client, typed)
            any_host = await print_list(
                output,
                client.hosts(full_name),
                key="hosts",
                data=asdict,
                quiet=lambda host: host.host,
                plain=_TableOfHosts().lines,
                service=full_name,
            )
        if not any_host:
            output.note(f"No host offers {full_name} at the moment.")

    run_async(main, output)


@app.command(epilog="Example: kdispatch service clients ann/web")
@reaches_relay
def clients(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List who is connected to a service of yours. --quiet prints one agent's id a line."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        grid = Table(("AGENT", "SOURCE", "SINCE", "STREAMS", "TOKEN"))
        async with caller.rest() as client:
            full_name = await caller.as_owner(client, typed)
            any_client = await print_list(
                output,
                client.clients(full_name),
                key="clients",
                data=asdict,
                quiet=lambda one: one.agent,
                plain=lambda page: grid.lines(
                    (one.agent, one.source, moment(one.since), one.streams, _name(one.token)) for one in page
                ),
                service=full_name,
            )
        if not any_client:
            output.note(f"No client is connected to {full_name} at the moment.")

    run_async(main, output)


@app.command(epilog="Example: kdispatch service withdraw 0123456789abcdef0123456789abcdef")
@reaches_relay
def withdraw(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host's full id, as 'service hosts' lists it.")],
    *,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Withdraw a live host: it ends, with its connections. An hst_ token suffices. --quiet prints the id."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest(caller.must_have_token()) as client:
            await client.withdraw_host(host)
        output.result({"host": host}, quiet=[host], plain=[f"withdrawn {host}"])

    run_async(main, output)


class _TableOfHosts:
    """Only the owner gets the hosts' addresses and tokens; the first page shows whether the user is the owner."""

    def __init__(self) -> None:
        self._owners = False
        self._table: Table | None = None

    def lines(self, page: tuple[HostInfo, ...]) -> list[str]:
        """The lines of one page."""
        if self._table is None:
            self._owners = any(host.source is not None for host in page)
            self._table = Table(("HOST", "SINCE", "STREAMS", *(("SOURCE", "TOKEN") if self._owners else ()), "LABELS"))
        return self._table.lines(map(self._row, page))

    def _row(self, host: HostInfo) -> tuple[object, ...]:
        labels = " ".join(f"{key}={value}" for key, value in sorted(host.labels.items()))
        owned = (host.source or "-", _name(host.token)) if self._owners else ()
        return host.host, moment(host.since), host.streams, *owned, labels


def _name(token: TokenName | None) -> str:
    return "-" if token is None else f"{token.id} {token.name}"
