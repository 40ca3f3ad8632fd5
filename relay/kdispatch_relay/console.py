"""How the relay's commands speak: data on stdout, messages on stderr, errors in three lines or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from kdispatch_protocol.console import error_json, error_lines, escaped
from kdispatch_protocol.errors import KdispatchError

__all__ = ["errors_told", "say"]


def say(text: str, *, err: bool = False) -> None:
    """One line; control characters are escaped, so a terminal never obeys them."""
    print(escaped(text), file=sys.stderr if err else sys.stdout, flush=True)


@contextmanager
def errors_told(*, as_json: bool = False) -> Iterator[None]:
    """End the command with an error's exit status, having told what failed, where, and what to try."""
    try:
        yield
    except KdispatchError as error:
        row = error.info
        if as_json:
            typer.echo(error_json(error.text, code=error.code, hop=row.hop, hint=row.hint), err=True)
        else:
            for line in error_lines(error.text, code=error.code, hop=row.hop, hint=row.hint):
                typer.echo(line, err=True)
        raise typer.Exit(row.exit or 1) from None
