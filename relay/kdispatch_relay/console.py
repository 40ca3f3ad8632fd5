"""Output of the relay's commands: data on stdout, messages on stderr, errors in three lines or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from kdispatch_protocol.console import error_json, error_lines, escaped
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.process.unblocked import leave
from kdispatch_protocol.shortage import shortage

__all__ = ["errors_told", "say"]


def say(text: str, *, err: bool = False) -> None:
    """Write one line. Control characters are escaped, so a terminal never obeys them."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{escaped(text)}\n")
    stream.flush()


@contextmanager
def errors_told(*, as_json: bool = False) -> Iterator[None]:
    """On an error, print what failed, where, and what to try; then end the command with the error's exit status."""
    try:
        yield
    except KdispatchError as error:
        row = error.info
        hint = getattr(error, "hint", row.hint)  # some errors have a better hint than the table
        if as_json:
            lines = [error_json(error.text, code=error.code, hop=row.hop, hint=hint)]
        else:
            lines = [*error_lines(error.text, code=error.code, hop=row.hop, hint=hint)]
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        if error.__cause__ is not None and shortage(error.__cause__):
            leave(row.exit or 1)
        raise typer.Exit(row.exit or 1) from None
