"""Asking a person before something is lost; nobody is asked where nobody sits."""

from __future__ import annotations

import sys

from kdispatch.settings import SetupError

__all__ = ["must_agree"]


def must_agree(question: str, answer: str, *, yes: bool, loses: str) -> None:
    """Return when ``answer`` was typed at a terminal, or with ``--yes``; raises ``bad_request`` otherwise.

    Call it outside of the event loop, where Ctrl-C ends the program at once.
    """
    if yes:
        return
    if sys.stdin is None or sys.stderr is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise SetupError("bad_request", f"{loses}, and there is no terminal to ask at.", hint="Add --yes.")
    # On stderr: standard output is for what the command prints.
    sys.stderr.write(question)
    sys.stderr.flush()
    if sys.stdin.readline().strip() != answer:
        raise SetupError("bad_request", "That is not what was to be typed: nothing was changed.", hint="Try again.")
