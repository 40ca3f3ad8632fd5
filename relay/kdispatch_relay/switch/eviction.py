"""Which sessions are cut when memory is short. Sans-I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kdispatch_relay.switch.budget import ProcessBudget
from kdispatch_relay.switch.intents import CutSession
from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["make_room"]


def make_room(sessions: Iterable[SwitchSession], budget: ProcessBudget) -> list[CutSession]:
    """Cut the largest session of the source that holds most, and repeat until there is room."""
    sessions = list(sessions)
    staying = [session for session in sessions if not session.doomed]
    over = budget.queued + budget.held - budget.total - sum(s.weight for s in sessions if s.doomed)
    sources: Counter[str] = Counter()
    for session in staying:
        sources[session.group or session.source] += session.weight
    cuts: list[CutSession] = []
    going: set[SwitchSession] = set()
    while over > 0 and sources and (source := max(sources, key=sources.__getitem__)):
        left = [session for session in staying if (session.group or session.source) == source and session not in going]
        heaviest = max(left, key=lambda session: session.weight)
        if 2 * heaviest.queued >= heaviest.weight:
            why = ("slow_consumer", "The relay is short of memory, and too much data is pending for this agent.")
        else:
            why = ("busy", "The relay is short of memory, and this session is the largest of its source.")
        cuts.append(CutSession(heaviest, *why))
        going.add(heaviest)
        over -= heaviest.weight
        sources[source] -= heaviest.weight
        if len(left) == 1:
            del sources[source]
    return cuts
