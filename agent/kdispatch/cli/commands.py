"""Finds the command, runs it, and turns its failure into an exit status.

Only what a command needs is imported. Groups of commands (``agent`` and others), and the commands of the
entry-point group ``kdispatch.commands`` (the relay's among them), are imported when
they are called, the HTTP client and asyncio inside the commands that use them.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import sys
import traceback
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from kdispatch.cli import account, audit, dev, doctor, login, status
from kdispatch.cli.main import print_version
from kdispatch.cli.output import INTERRUPTED, Output
from kdispatch.settings import SetupError, environment_switch
from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.shortage import SHORTAGE_HINT, shortage

__all__ = ["app", "run_command"]

ENTRY_POINTS: Final = "kdispatch.commands"

#: The ``--help`` texts of commands that are loaded on call.
_HELP: Final = {
    "agent": "Offer a local TCP service, or reach one that is offered.",
    "service": "Create services, look them up, see who hosts and uses them.",
    "token": "Make further tokens for your account, list them, revoke them.",
    "invite": "Invite others to host a service or to connect to it, and accept invitations.",
    "relay": "Run a relay: the server between hosts and clients.",
}
#: Options with a free text for people.
_MAY_BE_EMPTY: Final = frozenset({"--reason"})
#: Write errors without a file name, so of standard output.
_UNWRITTEN: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
#: kdispatch's own groups: each is a module of that name here.
_OWN: Final = ("agent", "service", "token", "invite")


class _Commands(TyperGroup):
    """The top level. Stand-ins represent the commands that are loaded on call."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        points = importlib.metadata.entry_points(group=ENTRY_POINTS)
        # No other package can replace kdispatch's own commands.
        self._plugins = {point.name: point for point in points if point.name not in {*self.commands, *_OWN}}
        for name in (*_OWN, *sorted(self._plugins)):
            self.add_command(TyperCommand(name, help=_HELP.get(name, "A command of another package.")))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Resolve the command in ``args`` by typer's rules, and replace a stand-in by the real command."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in _OWN:
            command = _loaded(name, importlib.import_module(f"kdispatch.cli.{name}").app)
        elif name in self._plugins:
            command = _loaded(name, self._plugins[name].load())
        return name, command, rest


app = typer.Typer(
    cls=_Commands,
    help="Reach a TCP service on a machine that can only make outgoing HTTPS connections.",
    epilog="Example: kdispatch sign-up ann --relay https://relay.example.org",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(account.app)
app.add_typer(login.app)
app.add_typer(audit.app)
app.add_typer(status.app)
app.add_typer(doctor.app)
app.add_typer(dev.app)


@app.callback()
def _top(
    context: typer.Context,
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        print_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run_command(arguments: list[str]) -> int:
    """Run the command in ``arguments`` and return its exit status."""
    output = Output(json="--json" in arguments)
    # kdispatch uses no colours. Without rich, typer's completion is faster, and structlog takes 5 MB less.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # what the import system takes for "not there"
    try:
        _refuse_empty(arguments)
        # Not standalone, because typer would print usage errors and defects in its own form.
        status = typer.main.get_command(app).main(arguments, prog_name="kdispatch", standalone_mode=False, color=False)
    except typer.TyperException as error:
        return _usage(error, output)
    except KdispatchError as error:
        return output.failed(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place that can report it in one line
        return _unexpected(arguments, error, output)
    return status if isinstance(status, int) else 0


def _unexpected(arguments: list[str], error: Exception, output: Output) -> int:
    """Report what no command has translated: a refusal by the system, a missing package, or a defect of kdispatch."""
    if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITTEN:
        return output.unwritten(error)  # of help texts, and of other packages' results
    if text := shortage(error):
        from kdispatch_protocol.process.unblocked import leave  # noqa: PLC0415 - most commands run no agent

        output.error(text, code=None, hop="you", hint=SHORTAGE_HINT)
        leave(1)
    if isinstance(error, OSError) and not environment_switch("KDISPATCH_DEBUG"):
        hint = "Check what the message names. KDISPATCH_DEBUG=1 shows where it happens."
        what = "" if error.filename is None else f" {error.filename}"
        output.error(f"The system refused{what}: {error.strerror or error}.", code=None, hop="you", hint=hint)
        return 1
    return _missing_package(arguments, error, output) or _defect(error, output)


def _refuse_empty(arguments: list[str]) -> None:
    """Raise ``bad_request`` for an empty value: a variable in a script was not set, and the default is not meant.

    With an empty ``--address`` the system would listen on every address.
    """
    before = ""
    for argument in arguments:
        option, sign, value = argument.partition("=")
        if sign and option.startswith("--") and not value.strip():
            before = option
        elif argument.strip():
            before = argument
            continue
        if before not in _MAY_BE_EMPTY:
            hint = "Give a value, or omit the option."
            # The value before it is not repeated, because it may be a secret.
            what = f"The value after {before}" if before.startswith("-") else "An argument"
            raise SetupError("bad_request", f"{what} is empty.", hint=hint)


def _loaded(name: str, plugin: typer.Typer) -> Any:
    # Inside a group of our own, so that it has no completion options and the same form of help.
    group = typer.Typer(add_completion=False, rich_markup_mode=None)
    group.add_typer(plugin, name=name)
    group.callback()(lambda: None)
    holder: Any = typer.main.get_command(group)
    return holder.commands[name]


def _usage(error: typer.TyperException, output: Output) -> int:
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kdispatch"
    text = error.format_message()
    if possible := getattr(error, "possibilities", None):  # for an option, the most likely one first
        text = f"{getattr(error, 'message', text)}. Did you mean {possible[0]!r}?"
    if "\n" in text:  # a group shows its help if no command is given
        sys.stderr.write(f"{text}\n")
    else:
        output.error(_sentence(text), code="bad_request", hop="you", hint=f"{command} --help")
    return CODES["bad_request"].exit or 2


def _sentence(text: str) -> str:
    """A library's text with a full stop, if it has no end yet."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _missing_package(arguments: list[str], error: Exception, output: Output) -> int:
    """Report a failed import of a plug-in command; returns its exit status, or 0 for another error."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "kdispatch").startswith("kdispatch"):
        return 0  # kdispatch's own packages are installed together, so a missing one is a defect
    plugins = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    point = plugins.get(arguments[0]) if arguments else None
    if point is None or environment_switch("KDISPATCH_DEBUG"):
        return 0
    distribution = point.dist.name if point.dist is not None else point.name
    # kdispatch's extras are named like their command; another distribution must be installed completely.
    wanted = f"'{distribution}[{point.name}]'" if distribution == "kdispatch" else distribution
    text = f"'kdispatch {point.name}' needs the Python package {error.name}, which is not installed."
    output.error(text, code="not_installed", hop="you", hint=f"pip install {wanted}")
    return CODES["not_installed"].exit or 1


def _defect(error: Exception, output: Output) -> int:
    if environment_switch("KDISPATCH_DEBUG"):
        traceback.print_exception(error)
    text = _sentence(f"This is a defect of kdispatch: {type(error).__name__}: {error}")
    output.error(text, code=None, hop="you", hint="Set KDISPATCH_DEBUG=1 to see where it happens, and report it.")
    return 1
