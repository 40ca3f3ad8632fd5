"""``kdispatch service``: create services, look them up, see who hosts them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kdispatch.cli.account import Caller
from kdispatch.cli.ask import must_agree
from kdispatch.cli.options import (
    Json,
    Quiet,
    Service,
    ServiceOption,
    Token,
    TokenFile,
    Yes,
    one_service,
)
from kdispatch.cli.output import Output, run_async, table
from kdispatch.cli.reach import Reach, reaches_relay
from kdispatch_protocol.names import check_name

if TYPE_CHECKING:
    from kdispatch.rest_client import CreatedService, RestClient

__all__ = ["app"]

app = typer.Typer(help="Create services, look them up, see who hosts them.")


@app.command(epilog="Example: kdispatch service create web")
@reaches_relay
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The service's name; it becomes HANDLE/NAME.")],
    *,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Create a service and its token, which lets whoever has it host the service."""
    output = Output(quiet=quiet, json=json)
    check_name(name, "service name")
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        # The new token is told only once: what would keep it from being stored is to be found before.
        caller.credentials.check()
        async with caller.rest() as client:
            created = await client.create_service(caller.must_have_token(), name)
        try:
            caller.credentials.store_service(caller.relay, created.service, created.token)
        finally:
            output.result(
                asdict(created),
                quiet=[created.token],
                plain=[f"service {created.service}", f"access  {created.access}", f"token   {created.token}"],
            )
        output.note(*_what_next(caller, created))

    run_async(main, output)


@app.command("list", epilog="Example: kdispatch service list")
@reaches_relay
def list_services(
    *,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List your services. --quiet prints one name a line."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            services = await client.services(caller.must_have_token())
        output.result(
            {"services": [asdict(service) for service in services]},
            quiet=[service.service for service in services],
            plain=table(("SERVICE", "ACCESS", "LIVE HOSTS"), ((s.service, s.access, s.live_hosts) for s in services)),
        )
        if not services:
            output.note("No services yet; create one: kdispatch service create NAME")

    run_async(main, output)


@app.command(epilog="Example: kdispatch service show ann/web")
@reaches_relay
def show(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show one service. --quiet prints how many hosts offer it now."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            seen = await client.service(await _full_name(client, caller, typed), caller.token)
        output.result(
            asdict(seen),
            quiet=[str(seen.live_hosts)],
            plain=[f"service    {seen.service}", f"access     {seen.access}", f"live hosts {seen.live_hosts}"],
        )

    run_async(main, output)


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
            full_name = await _full_name(client, caller, typed)
            live = await client.hosts(full_name, caller.token)
        rows = ((h.host, h.since, h.streams, " ".join(f"{k}={v}" for k, v in sorted(h.labels.items()))) for h in live)
        output.result(
            {"service": full_name, "hosts": [asdict(host) for host in live]},
            quiet=[host.host for host in live],
            plain=table(("HOST", "SINCE", "STREAMS", "LABELS"), rows),
        )
        if not live:
            output.note(f"Nobody hosts {full_name} at the moment.")

    run_async(main, output)


@app.command(epilog="Example: kdispatch service delete ann/web --yes")
@reaches_relay
def delete(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    yes: Yes = False,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Delete a service and its token; its hosts and connections end. --quiet prints its name."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)
    shown = typed if caller.given else caller.credentials.full_name(caller.relay, typed)
    loses = f"{shown} is deleted for good, with its token"
    must_agree(f"{loses}. Type its name to delete it: ", shown, yes=yes, loses=loses)

    async def main() -> None:
        async with caller.rest() as client:
            full_name = await _full_name(client, caller, typed)
            owner = caller.credentials.admin_token(caller.relay, full_name.partition("/")[0])
            await client.delete_service(caller.given or owner or caller.must_have_token(), full_name)
        caller.credentials.drop(caller.relay, services=[full_name])
        output.result({"service": full_name}, quiet=[full_name], plain=[f"deleted {full_name}"])

    run_async(main, output)


@app.command(epilog="Example: kdispatch service withdraw 0123456789abcdef0123456789abcdef")
@reaches_relay
def withdraw(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host's whole id, as 'service hosts' lists it.")],
    *,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Withdraw a live host: it ends, with its connections. An hst_ token will do. --quiet prints the id."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            await client.withdraw_host(caller.must_have_token(), host)
        output.result({"host": host}, quiet=[host], plain=[f"withdrawn {host}"])

    run_async(main, output)


async def _full_name(client: RestClient, caller: Caller, typed: str) -> str:
    """``HANDLE/NAME``; a name alone belongs to the token that was given, or to the current handle."""
    if "/" in typed or caller.given is None:
        return caller.credentials.full_name(caller.relay, typed)
    name = check_name(typed, "service name")
    return f"{(await client.whoami(caller.given)).handle}/{name}"


def _what_next(caller: Caller, created: CreatedService) -> tuple[str, ...]:
    relay = caller.relay
    plaintext = " --insecure-plaintext" if not (relay.secure or relay.is_loopback) else ""
    flags = f" --relay {relay}{plaintext}"
    access = "everyone who knows the name may connect" if created.access == "public" else "connecting needs a token"
    return (
        f"It is {created.access}: {access}. The token is stored in {caller.credentials.path};",
        "it is shown only this once, and whoever has it may host the service.",
        "Next, where the service runs, with its port; 'login' asks for the token, and isn't needed on this machine:",
        f"  kdispatch login{flags}",
        f"  kdispatch agent host {created.service} --port 8080{flags}",
        "and where it is used, with a free port:",
        f"  kdispatch agent connect {created.service} --port 9090{flags}",
    )
