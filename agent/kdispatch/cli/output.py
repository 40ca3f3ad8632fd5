"""How every command speaks: data on stdout, messages on stderr, errors in three lines, exit statuses.

Nothing here is coloured or animated, and control characters in what a relay
sent are escaped, so a terminal never obeys them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TextIO

from kdispatch.cli.durations import moment
from kdispatch.cli.interruption import Interruption
from kdispatch.settings import SetupError, environment_switch
from kdispatch_protocol.console import SCHEMA, error_json, error_lines, escaped
from kdispatch_protocol.errors import CODES, KdispatchError

if TYPE_CHECKING:
    import asyncio

__all__ = ["INTERRUPTED", "Output", "choose_loop", "run_async", "table"]

INTERRUPTED: Final = 128 + 2  #: as shells report SIGINT
_PIPE_CLOSED: Final = 128 + 13  #: as shells report SIGPIPE, by which other programs end here


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one command prints; ``json`` goes before ``quiet``."""

    quiet: bool = False
    json: bool = False

    def result(self, data: Mapping[str, Any], *, quiet: Sequence[str], plain: Sequence[str]) -> None:
        """Print the command's result on stdout: ``data`` as JSON, or the ``quiet`` lines, or the ``plain`` ones."""
        try:
            if self.json:
                _write(sys.stdout, json.dumps({"schema": SCHEMA, **data}, default=moment))
            else:
                _write(sys.stdout, *map(escaped, quiet if self.quiet else plain))
        except OSError as error:
            raise SystemExit(self.unwritten(error)) from None

    def unwritten(self, error: OSError) -> int:
        """Standard output does not take the result: say so, but for a reader that left; returns the exit status."""
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return _PIPE_CLOSED
        hint = "Look at where standard output goes. What the command was to do is done."
        self.error(f"The result can't be written: {error.strerror or error}.", code=None, hop="you", hint=hint)
        return 1

    def note(self, *lines: str) -> None:
        """Tell a person something on stderr; nothing with --quiet or --json."""
        if not (self.quiet or self.json):
            _say(*map(escaped, lines))

    def warn(self, text: str, code: str | None = None) -> None:
        """One line on stderr in every mode: something went wrong, and the command goes on."""
        if self.json:
            _say(json.dumps({"schema": SCHEMA, "warning": {"code": code, "text": text}}))
        else:
            _say(escaped(f"kdispatch: {text} [{code}]" if code else f"kdispatch: warning: {text}"))

    def failed(self, error: KdispatchError) -> int:
        """Print what failed, at which hop and what to try; return the exit status."""
        row = CODES[error.code]
        local = isinstance(error, SetupError)
        hint = error.hint if isinstance(error, SetupError) else row.hint
        self.error(error.text, code=error.code, hop="you" if local else row.hop, hint=hint)
        if environment_switch("KDISPATCH_DEBUG"):
            _say("".join(traceback.format_exception(error)).rstrip())
        return row.exit or 1

    def error(self, text: str, *, code: str | None, hop: str, hint: str) -> None:
        """Print an error that may have no code of the table (``None``): then it is this program's own."""
        if self.json:
            _say(error_json(text, code=code, hop=hop, hint=hint))
        else:
            _say(*error_lines(text, code=code, hop=hop, hint=hint))


def run_async(
    main: Callable[[], Awaitable[int | None]], output: Output, interruption: Interruption | None = None
) -> None:
    """Run ``main()`` to its end on a new event loop; return where it returned ``None`` or 0, else end the process.

    A :class:`KdispatchError`, also one inside an exception group, is printed
    and its exit status used. The first SIGINT or SIGTERM cancels ``main``:
    catch ``CancelledError`` to drain and *return* a status, or let it pass for
    128 + signal. The second signal ends the process at once, or does what
    ``interruption`` says.
    """
    import asyncio  # noqa: PLC0415 - takes 20 ms, and --help and --version do without

    interruption = interruption or Interruption()
    try:
        with asyncio.Runner(loop_factory=choose_loop()) as runner:
            status = runner.run(_watched(main, interruption)) or 0
    except asyncio.CancelledError:
        if interruption.status is None:
            raise
        status = interruption.status
    except (KdispatchError, BaseExceptionGroup) as error:
        known = _known_cause(error)
        if known is None:
            raise
        status = output.failed(known)
    if status:
        raise SystemExit(status)


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    """Lines with columns as wide as they have to be; none where there are no rows."""
    cells = [head, *(tuple(map(str, row)) for row in rows)]
    if len(cells) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return [line.rstrip() for line in lines]


def choose_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """The maker of event loops: uvloop's where it is importable and KDISPATCH_NO_UVLOOP isn't set, else asyncio's."""
    if not environment_switch("KDISPATCH_NO_UVLOOP"):
        with contextlib.suppress(ImportError):
            maker: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
            return maker
    from asyncio import new_event_loop  # noqa: PLC0415 - see run_async

    return new_event_loop


async def _watched(main: Callable[[], Awaitable[int | None]], interruption: Interruption) -> int | None:
    from asyncio import current_task, get_running_loop  # noqa: PLC0415 - see run_async

    task = current_task()
    assert task is not None
    interruption.watch(get_running_loop(), task)
    return await main()


def _known_cause(error: BaseException) -> KdispatchError | None:
    """The first failure with a code, looking into groups."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_known_cause, error.exceptions)), None)
    return error if isinstance(error, KdispatchError) else None


def _write(stream: TextIO | None, *lines: str) -> None:
    if stream is None or not lines:  # None: the descriptor was closed before the start
        return
    stream.write("".join(f"{line}\n" for line in lines))
    stream.flush()


def _say(*lines: str) -> None:
    """Messages: where these can't be written nobody can be told so."""
    try:
        _write(sys.stderr, *lines)
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """What the stream still holds must not raise again at the interpreter's end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
