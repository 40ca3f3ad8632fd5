"""Asks the user before something is lost, if there is a terminal."""

from __future__ import annotations

import sys
from typing import Final

from kdispatch.machine.operating_system import HERE
from kdispatch.settings import SetupError

__all__ = ["must_agree"]

_ANSWER_BYTES: Final = 1024


def must_agree(question: str, answer: str, *, yes: bool, loses: str) -> None:
    """Return if the user typed ``answer`` at a terminal, or gave ``--yes``; raises ``bad_request`` otherwise.

    Call this outside of the event loop, where Ctrl-C ends the program at once.
    """
    if yes:
        return
    if sys.stdin is None or sys.stderr is None or not (HERE.is_terminal(sys.stdin) and sys.stderr.isatty()):
        raise SetupError("bad_request", f"{loses}, and there is no terminal to ask at.", hint="Add --yes.")
    # On stderr, because standard output is for the command's result.
    sys.stderr.write(question)
    sys.stderr.flush()
    if HERE.read_line(_ANSWER_BYTES).decode(errors="replace").strip() != answer:
        raise SetupError("bad_request", "The answer does not match: nothing was changed.", hint="Try again.")
