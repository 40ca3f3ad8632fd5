"""What a defence is, and the threats that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["THREATS", "Defence", "Edit", "off"]

#: What a relay and its agents are up against, by the numbers of docs/security.md.
THREATS: Final = {
    1: "the relay as an open proxy",
    2: "access to another service on an open session",
    3: "a hostile relay drives an agent into its LAN",
    4: "a stranger hosts or changes somebody's service",
    5: "tokens in logs, URLs, the process list",
    6: "a stolen database",
    7: "guessing names or tokens",
    8: "revoked but still connected",
    9: "a web page in its visitor's place",
    10: "script in names and errors",
    11: "a forged X-Forwarded-For",
    12: "slow handshakes",
    13: "exhaustion of connections, streams, memory",
    14: "slow readers",
    15: "hostile frames",
    16: "impersonating a peer or a process",
    17: "a stampede, or a storm after a refusal",
    18: "version skew",
    19: "TLS that nobody has verified",
    20: "log injection",
    21: "the database locked or away",
}


@dataclass(frozen=True, slots=True)
class Edit:
    """In ``file`` the text ``old``, which stands there once, becomes ``new``."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Defence:
    """``edits`` switch it off, all together: it may stand in several places, one behind the other."""

    threat: int
    what: str
    test: str  # below tests/security
    edits: tuple[Edit, ...]


def off(threat: int, what: str, test: str, *edits: tuple[str, str, str]) -> Defence:
    """A defence with its edits: each a file, the text in it, and what switches it off."""
    return Defence(threat, what, test, tuple(Edit(*edit) for edit in edits))
