"""The form of a defence, and the list of threats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["THREATS", "Defence", "Edit", "off"]

#: The threats to a relay and its agents, by their numbers in docs/security.md.
THREATS: Final = {
    1: "the relay as an open proxy",
    2: "access to another service on an open session",
    3: "a hostile relay makes an agent dial into its LAN",
    4: "a stranger hosts or changes another person's service",
    5: "tokens in logs, URLs, the process list",
    6: "a stolen database",
    7: "guessing names or tokens",
    8: "revoked but still connected",
    9: "a web page that uses its visitor's access",
    10: "script in names and errors",
    11: "a forged X-Forwarded-For",
    12: "slow handshakes",
    13: "exhaustion of connections, streams, memory",
    14: "slow readers",
    15: "hostile frames",
    16: "impersonating a peer or a process",
    17: "a stampede of agents, or a storm of retries after a refusal",
    18: "version skew",
    19: "TLS without verification",
    20: "log injection",
    21: "a database that is locked or missing",
}


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text ``old``, which occurs once in ``file``, by ``new``."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Defence:
    """A defence, which may consist of several checks in a row: all ``edits`` together switch it off."""

    threat: int
    what: str
    test: str  # relative to tests/security
    edits: tuple[Edit, ...]


def off(threat: int, what: str, test: str, *edits: tuple[str, str, str]) -> Defence:
    """Return a defence. Each edit is a file, a text in it, and the text that switches the defence off."""
    return Defence(threat, what, test, tuple(Edit(*edit) for edit in edits))
