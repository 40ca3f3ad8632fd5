"""``kdispatch sign-up`` and ``whoami``: who one is at a relay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from kdispatch.cli.options import InsecurePlaintext, Json, Quiet, Relay, Token, TokenFile
from kdispatch.cli.output import Output, run_async
from kdispatch.credentials import Credentials, given_token
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import load_settings, remember_relay
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name

__all__ = ["Caller", "app"]

app = typer.Typer()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls which relay: ``given`` is a token from flags or environment, which goes before the stored ones."""

    relay: RelayUrl
    credentials: Credentials
    given: str | None

    @classmethod
    def load(
        cls,
        output: Output,
        *,
        relay: str | None,
        insecure_plaintext: bool | None,
        token: str | None = None,
        token_file: str | None = None,
        ignore_given: bool = False,
    ) -> Caller:
        """Put together what the flags, the environment and the files say."""
        settings = load_settings(relay=relay, insecure_plaintext=insecure_plaintext)
        given = None if ignore_given else given_token(token, token_file, warn=output.warn)
        return cls(settings.relay_url, Credentials(), given)

    @property
    def token(self) -> str | None:
        """The given token, or the stored one of the current handle."""
        return self.given or self.credentials.admin_token(self.relay)

    def must_have_token(self) -> str:
        """The token; ``not_logged_in`` where there is none."""
        if (token := self.token) is None:
            raise KdispatchError("not_logged_in", f"No token for {self.relay} is given or stored.")
        return token


@app.command("sign-up", epilog="Example: kdispatch sign-up ann --relay https://relay.example.org")
def sign_up(
    handle: Annotated[str, typer.Argument(metavar="HANDLE", help="The name that you want; the first to ask gets it.")],
    *,
    relay: Relay = None,
    insecure_plaintext: InsecurePlaintext = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Take a handle at a relay; its token and the relay are remembered."""
    output = Output(quiet=quiet, json=json)
    check_name(handle, "handle")
    caller = Caller.load(output, relay=relay, insecure_plaintext=insecure_plaintext)

    async def main() -> None:
        from kdispatch.rest_client import RestClient  # noqa: PLC0415 - heavy

        # The token is told only once: what would keep it from being stored is to be found before.
        caller.credentials.check()
        async with RestClient(caller.relay) as client:
            signed = await client.sign_up(handle)
        try:
            caller.credentials.store_admin(caller.relay, signed.handle, signed.token)
            remember_relay(caller.relay)
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
def whoami(
    *,
    relay: Relay = None,
    insecure_plaintext: InsecurePlaintext = None,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Ask the relay whose the token in use is. --quiet prints the handle."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, relay=relay, insecure_plaintext=insecure_plaintext, token=token, token_file=token_file)

    async def main() -> None:
        from kdispatch.rest_client import RestClient  # noqa: PLC0415 - heavy

        async with RestClient(caller.relay) as client:
            identity = await client.whoami(caller.must_have_token())
        lines = [f"handle  {identity.handle}", f"relay   {caller.relay}", f"kind    {identity.kind}"]
        output.result(
            {**asdict(identity), "relay": str(caller.relay)},
            quiet=[identity.handle],
            plain=[*lines, f"service {identity.service}"] if identity.service else lines,
        )

    run_async(main, output)
