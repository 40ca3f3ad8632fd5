"""Output of all commands: data on stdout, messages on stderr, errors in three lines, exit statuses.

Nothing is coloured or animated. Control characters from a relay are escaped, so
a terminal never obeys them.
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
from kdispatch.settings import environment_switch
from kdispatch.setup_error import HintedError, SetupError
from kdispatch_protocol.console import SCHEMA, error_json, error_lines, escaped
from kdispatch_protocol.errors import CODES, KdispatchError

if TYPE_CHECKING:
    import asyncio

__all__ = ["INTERRUPTED", "Output", "Table", "choose_loop", "run_async", "table"]

INTERRUPTED: Final = 128 + 2  #: the status that shells report for SIGINT
_PIPE_CLOSED: Final = 128 + 13  #: the status that shells report for SIGPIPE, which ends other programs here


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The output of one command; ``json`` has precedence over ``quiet``."""

    quiet: bool = False
    json: bool = False

    def result(self, data: Mapping[str, Any], *, quiet: Sequence[str], plain: Sequence[str]) -> None:
        """Print the command's result on stdout: ``data`` as JSON, or the ``quiet`` lines, or the ``plain`` ones."""
        if self.json:
            self.write(json.dumps({"schema": SCHEMA, **data}, default=moment) + "\n")
        else:
            self.lines(quiet if self.quiet else plain)

    def lines(self, lines: Iterable[str]) -> None:
        """Print a part of the result on stdout, for people or for a script."""
        self.write("".join(f"{escaped(line)}\n" for line in lines))

    def write(self, text: str) -> None:
        """Print a part of the result on stdout unchanged."""
        try:
            _put(sys.stdout, text)
        except OSError as error:
            raise SystemExit(self.unwritten(error)) from None

    def unwritten(self, error: OSError) -> int:
        """Report that standard output refuses the result, unless its reader left; returns the exit status."""
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return _PIPE_CLOSED
        hint = "Check where standard output goes. The command itself has done its work."
        self.error(f"The result can't be written: {error.strerror or error}.", code=None, hop="you", hint=hint)
        return 1

    def note(self, *lines: str) -> None:
        """Print a message for people on stderr; nothing with --quiet or --json."""
        if not (self.quiet or self.json):
            _say(*map(escaped, lines))

    def warn(self, text: str, code: str | None = None) -> None:
        """Print a warning on stderr in every mode: something went wrong, and the command continues."""
        if self.json:
            _say(json.dumps({"schema": SCHEMA, "warning": {"code": code, "text": text}}))
        else:
            _say(escaped(f"kdispatch: {text} [{code}]" if code else f"kdispatch: warning: {text}"))

    def failed(self, error: KdispatchError) -> int:
        """Print what failed, at which hop, and what to try; returns the exit status."""
        row = CODES[error.code]
        local = isinstance(error, SetupError)
        hint = error.hint if isinstance(error, HintedError) else row.hint
        self.error(error.text, code=error.code, hop="you" if local else row.hop, hint=hint)
        if environment_switch("KDISPATCH_DEBUG"):
            _say("".join(traceback.format_exception(error)).rstrip())
        return row.exit or 1

    def error(self, text: str, *, code: str | None, hop: str, hint: str) -> None:
        """Print an error. ``code`` may be ``None``: then it is an error of this program without a code."""
        if self.json:
            _say(error_json(text, code=code, hop=hop, hint=hint))
        else:
            _say(*error_lines(text, code=code, hop=hop, hint=hint))


def run_async(
    main: Callable[[], Awaitable[int | None]], output: Output, interruption: Interruption | None = None
) -> None:
    """Run ``main()`` to its end on a new event loop. Returns if it returned ``None`` or 0, otherwise ends the process.

    A :class:`KdispatchError`, also one inside an exception group, is printed and
    gives the exit status. The first SIGINT, SIGTERM or SIGHUP cancels ``main``:
    catch ``CancelledError`` to drain and *return* a status, or let it pass for
    128 + signal. The second signal ends the process at once, or does what
    ``interruption`` says.
    """
    import asyncio  # noqa: PLC0415 - takes 20 ms, and --help and --version do not need it

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


class Table:
    """Lines in columns, for rows that come in parts: columns are as wide as all parts so far need."""

    def __init__(self, head: tuple[str, ...]) -> None:
        self._head: tuple[str, ...] | None = head
        self._widths = list(map(len, head))

    def lines(self, rows: Iterable[tuple[object, ...]]) -> list[str]:
        """The next lines, with the head before the first one; empty if there are no rows."""
        cells = [tuple(map(str, row)) for row in rows]
        if not cells:
            return []
        if self._head is not None:
            cells.insert(0, self._head)
            self._head = None
        columns = zip(*cells, strict=True)
        self._widths = [max(width, *map(len, column)) for width, column in zip(self._widths, columns, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)) for row in cells]
        return [line.rstrip() for line in lines]


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    """Lines in columns of sufficient width; empty if there are no rows."""
    return Table(head).lines(rows)


def choose_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory for event loops: uvloop's if it is installed and KDISPATCH_NO_UVLOOP isn't set, else asyncio's."""
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
    """The first failure with a code, also inside groups."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_known_cause, error.exceptions)), None)
    return error if isinstance(error, KdispatchError) else None


def _put(stream: TextIO | None, text: str) -> None:
    if stream is None or not text:  # None: the descriptor was closed before the start
        return
    stream.write(text)
    stream.flush()


def _say(*lines: str) -> None:
    """Write messages to stderr; a failure there can't be reported."""
    try:
        _put(sys.stderr, "".join(f"{line}\n" for line in lines))
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Discard what the stream still holds, so that it does not raise again when the interpreter exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
