"""The intents of a switch by kind. The gate takes all of them in order; a test takes the kind that it looks at."""

from __future__ import annotations

from typing import TypeVar

from kdispatch_relay.switch.intents import AskAttach, AskOffer, AskOpen, CutSession, Intent, Question
from kdispatch_relay.switch.switch import Switch

__all__ = ["cuts_of", "questions_of", "taken"]

_I = TypeVar("_I", bound=Intent)


def taken(switch: Switch, *kinds: type[_I]) -> list[_I]:
    """Take the waiting intents of these kinds. The others stay, in their order."""
    found: list[_I] = []
    for intent in switch.intents.take_all():
        if isinstance(intent, kinds):
            found.append(intent)
        else:
            switch.intents.put(intent)
    return found


def questions_of(switch: Switch) -> list[Question]:
    """Take the questions. Answer each by ``allowed`` or ``refused`` of the part of the switch that asked it."""
    return taken(switch, AskOffer, AskOpen, AskAttach)


def cuts_of(switch: Switch) -> list[CutSession]:
    """Take the cuts. Disconnect each session."""
    return taken(switch, CutSession)
