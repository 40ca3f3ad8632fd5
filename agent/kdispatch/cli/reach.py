"""The options of all commands that ask a relay: which relay, and how to reach it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from kdispatch.cli.options import from_setting
from kdispatch.machine.hidden_arguments import hide_password
from kdispatch.settings import NETWORK, SetupError

__all__ = ["NAMED", "REACHED", "Reach", "names_relay", "reaches_relay"]

#: Settings by name; ``None`` for an option that was not given.
Reach = Mapping[str, Any]

#: The options that name the relay, and with them those that say how to reach it.
NAMED: Final = ("relay", "insecure_plaintext")
REACHED: Final = (*NAMED, *NETWORK)

_METAVARS: Final = {
    "relay": "URL", "proxy": "URL", "ca_file": "FILE", "client_cert": "FILE", "client_key": "FILE",
    "server_name": "NAME", "pin": "sha256:…",
}  # fmt: skip
#: Options that may be repeated; their setting is one text with commas.
_SEVERAL: Final = frozenset({"relay", "pin"})

_Command = Callable[..., None]


def reaches_relay(command: _Command) -> _Command:
    """Give a command all options for reaching the relay, in place of its parameter ``reach``."""
    return _with_options(command, REACHED)


def names_relay(command: _Command) -> _Command:
    """Give a command that asks no relay only the options that name one, in place of ``reach``."""
    return _with_options(command, NAMED)


def _with_options(command: _Command, names: tuple[str, ...]) -> _Command:
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "reach":
            parameters.append(parameter)
            continue
        parameters += [
            inspect.Parameter(name, parameter.kind, default=None, annotation=_option(name)) for name in names
        ]

    def run(**values: Any) -> None:
        flags = {name: values.pop(name) for name in names}
        if flags.get("proxy") and flags.get("no_proxy"):
            raise SetupError("bad_request", "--proxy and --no-proxy exclude each other.", hint="Give one of them.")
        if flags.get("proxy"):
            hide_password(flags["proxy"])
        for name in _SEVERAL & flags.keys():
            flags[name] = ",".join(flags[name]) if flags[name] else None
        command(reach=flags, **values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect, and so by typer
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str) -> Any:
    kind: Any = bool if name in {"insecure_plaintext", "no_proxy"} else list[str] if name in _SEVERAL else str
    return Annotated[kind | None, from_setting(name, _METAVARS.get(name))]
