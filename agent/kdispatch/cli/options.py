"""Options shared by several commands: declared once, with the texts of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from kdispatch.settings import ENVIRONMENT, SetupError, setting_of

__all__ = [
    "Grace",
    "Json",
    "OfService",
    "OpenWait",
    "Quiet",
    "Rotate",
    "Service",
    "ServiceOption",
    "Token",
    "TokenFile",
    "Yes",
    "from_setting",
    "one_of",
    "one_service",
]


def from_setting(name: str, metavar: str | None = None) -> Any:
    """The option for a setting."""
    # load_settings reads the environment, with the precedence; here it is only named.
    setting = setting_of(name)
    return typer.Option(setting.flag, metavar=metavar, help=f"{setting.text} [{setting.env}]", show_default=False)


Grace = Annotated[float | None, from_setting("grace", "SECONDS")]
Rotate = Annotated[float | None, from_setting("rotate", "SECONDS")]
OpenWait = Annotated[float | None, from_setting("open_wait", "SECONDS")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result, for scripts.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; errors are JSON, too.")]

Yes = Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")]

assert "KDISPATCH_TOKEN" in ENVIRONMENT
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="'-' reads it from standard input, '@FILE' from a file; the token itself works, but others can see it. "
        "[KDISPATCH_TOKEN]",
        show_default=False,
    ),
]
TokenFile = Annotated[
    str | None, typer.Option("--token-file", metavar="FILE", help="Read the token from a file.", show_default=False)
]

Service = Annotated[
    str | None,
    typer.Argument(metavar="SERVICE", help="HANDLE/NAME, or NAME of your own handle.", show_default=False),
]
ServiceOption = Annotated[
    str | None,
    typer.Option("--service", metavar="SERVICE", help="Another way to write SERVICE.", show_default=False),
]

OfService = Annotated[
    str | None,
    typer.Option("--service", metavar="SERVICE", help="Only for this service of yours.", show_default=False),
]

_NO_SERVICE: Final = "Name one service: HANDLE/NAME, or NAME of your own handle."


def one_service(argument: str | None, option: str | None) -> str:
    """The service from either place; raises ``bad_request`` for none or two different ones."""
    named = {name for name in (argument, option) if name is not None}
    if len(named) != 1:
        raise SetupError("bad_request", _NO_SERVICE, hint="Add --help to the command to see an example.")
    return named.pop()


def one_of(option: str, typed: str | None, choices: Sequence[str]) -> str | None:
    """Return ``typed``, which may be ``None``; raises ``bad_request`` if it is not among ``choices``."""
    if typed is not None and typed not in choices:
        text = f"{option} is {typed[:80]!r}."
        raise SetupError("bad_request", text, hint=f"Write {', '.join(choices[:-1])} or {choices[-1]}.")
    return typed
