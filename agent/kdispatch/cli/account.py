"""``kdispatch sign-up`` and ``whoami``: the account at a relay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from kdispatch.cli.durations import moment
from kdispatch.cli.options import Json, Quiet, Token, TokenFile
from kdispatch.cli.output import Output, run_async
from kdispatch.cli.reach import Reach, reaches_relay
from kdispatch.credentials import Credentials, given_code, given_token
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings, load_settings, remember_relay
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name

if TYPE_CHECKING:
    from kdispatch.rest.client import RestClient

__all__ = ["Caller", "app"]

app = typer.Typer()


@dataclass(frozen=True, slots=True)
class Caller:
    """Caller and relay: ``given`` is a token from flags or environment, which has precedence over stored ones."""

    settings: Settings
    relay: RelayUrl
    credentials: Credentials
    given: str | None

    @classmethod
    def load(
        cls,
        output: Output,
        *,
        reach: Reach,
        token: str | None = None,
        token_file: str | None = None,
        ignore_given: bool = False,
    ) -> Caller:
        """Combine the flags, the environment and the files."""
        settings = load_settings(**reach)
        given = None if ignore_given else given_token(token, token_file, warn=output.warn)
        return cls(settings, settings.relay_url, Credentials(), given)

    @property
    def token(self) -> str | None:
        """The given token, or the stored one of the current handle."""
        return self.given or self.credentials.admin_token(self.relay)

    @property
    def relay_flags(self) -> str:
        """The options by which a command on another machine finds the relay, with a leading space."""
        plaintext = " --insecure-plaintext" if not (self.relay.secure or self.relay.is_loopback) else ""
        return f" --relay {self.relay}{plaintext}"

    def rest(self, token: str | None = None) -> RestClient:
        """The relay's REST API with ``token``. Use it as an asynchronous context manager."""
        from kdispatch.network.dialer import Dialer  # noqa: PLC0415 - heavy
        from kdispatch.rest.client import RestClient  # noqa: PLC0415 - heavy

        return RestClient(Dialer.of(self.settings), token=token)

    def remember_relay(self) -> None:
        """Make this relay the default for later commands."""
        remember_relay(*self.settings.relay_urls)

    def must_have_token(self) -> str:
        """The token; raises ``not_logged_in`` if there is none."""
        if (token := self.token) is None:
            raise KdispatchError("not_logged_in", f"No admin's token for {self.relay} is given or stored.")
        return token

    def owner_token(self, handle: str) -> str:
        """The given token, or the stored one of this admin; ``not_logged_in``."""
        token = self.given or self.credentials.admin_token(self.relay, handle)
        if token is None:
            raise KdispatchError(
                "not_logged_in", f"No admin's token of {handle!r} for {self.relay} is given or stored."
            )
        return token

    async def as_reader(self, rest: RestClient, typed: str) -> str:
        """``HANDLE/NAME`` of a service to read; sets the token for that."""
        full_name = await self._full_name(rest, typed)
        rest.token = self.given or self.credentials.token_for_reader(self.relay, full_name)
        return full_name

    async def as_owner(self, rest: RestClient, typed: str) -> str:
        """``HANDLE/NAME`` of a service to change; sets its owner's token."""
        full_name = await self._full_name(rest, typed)
        rest.token = self.owner_token(full_name.partition("/")[0])
        return full_name

    async def as_admin(self, rest: RestClient, typed: str | None) -> str | None:
        """``NAME`` of one of the user's services, or ``None``; sets its owner's token."""
        if typed is None:
            rest.token = self.must_have_token()
            return None
        full_name = await self.as_owner(rest, typed)
        handle, _, name = full_name.partition("/")
        if self.given and "/" in typed and (mine := (await rest.whoami()).handle) != handle:
            raise KdispatchError("not_permitted", f"The token is {mine!r}'s, and {full_name} is another's.")
        return name

    async def _full_name(self, rest: RestClient, typed: str) -> str:
        """Complete a name without a handle: with the given token's handle, or else with the current one."""
        if "/" in typed or self.given is None:
            return self.credentials.full_name(self.relay, typed)
        name = check_name(typed, "service name")
        rest.token = self.given
        return f"{(await rest.whoami()).handle}/{name}"


@app.command("sign-up", epilog="Example: kdispatch sign-up ann --relay https://relay.example.org")
@reaches_relay
def sign_up(
    handle: Annotated[str, typer.Argument(metavar="HANDLE", help="The name that you want; the first to ask gets it.")],
    *,
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            metavar="CODE",
            help="The code that some relays require; '-' reads it from standard input, '@FILE' from a file.",
            show_default=False,
        ),
    ] = None,
    reach: Reach,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Take a handle at a relay; its token and the relay are remembered."""
    output = Output(quiet=quiet, json=json)
    check_name(handle, "handle")
    caller = Caller.load(output, reach=reach)
    # Ask outside of the event loop, where Ctrl-C ends the program at once.
    invitation = None if code is None else given_code(code)

    async def main() -> None:
        # The token is sent only once, so detect now what would prevent storing it.
        caller.credentials.check()
        async with caller.rest() as client:
            signed = await client.sign_up(handle, code=invitation)
        try:
            caller.credentials.store_admin(caller.relay, signed.handle, signed.token)
            caller.remember_relay()
        finally:
            output.result(
                {"handle": signed.handle, "relay": str(caller.relay), "token": signed.token},
                quiet=[signed.token],
                plain=[f"handle  {signed.handle}", f"relay   {caller.relay}", f"token   {signed.token}"],
            )
        output.note(
            f"The token is stored in {caller.credentials.path}; it is shown only this once.",
            "Next: kdispatch service create NAME",
        )

    run_async(main, output)


@app.command(epilog="Example: kdispatch whoami")
@reaches_relay
def whoami(
    *,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Ask the relay whose the token in use is. --quiet prints the handle."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest(caller.must_have_token()) as client:
            identity = await client.whoami()
        lines = [f"handle  {identity.handle}", f"relay   {caller.relay}", f"kind    {identity.kind}"]
        lines += [f"service {identity.service}"] if identity.service else []
        lines += [f"token   {identity.id} ({identity.name})"] if identity.id else []
        lines += [f"expires {moment(identity.expires)}"] if identity.expires else []
        output.result({**asdict(identity), "relay": str(caller.relay)}, quiet=[identity.handle], plain=lines)

    run_async(main, output)
