"""An agent's slot: by it a process that was killed is known to be no more as soon as its successor is there.

A slot is a locked file of this user. In it are the secrets of the process that
holds it and of the last ones before, newest first. Whoever gets the lock knows
that those are gone, and can prove whose successor it is; the relay then tells
their peers at once what they would otherwise wait for in vain.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kdispatch.operating_system import HERE
from kdispatch.private_files import make_private, writing
from kdispatch.settings import state_directory

__all__ = ["Identity", "Slot", "take_slot"]

SECRET_BYTES: Final = 32
#: As many as HELLO takes; an agent that is killed more often within a grace leaves peers to wait for its end.
_PREDECESSORS: Final = 4
#: Agents of one user that do the same at one relay; one more does without a slot.
_SLOTS: Final = 64
_VARIABLE: Final = "KDISPATCH_STATE_DIR"


@dataclass(frozen=True, slots=True)
class Identity:
    """A process's secret, which nobody but relays may see, and those of the processes that it stands in for."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    predecessors: tuple[bytes, ...] = field(default=(), repr=False)


class Slot:
    """A held slot. It is given back when the process ends, however that happens."""

    def __init__(self, descriptor: int, directory: Path) -> None:
        self._directory = directory
        self._descriptor = descriptor
        self._before = _read(descriptor)
        self.identity = Identity(predecessors=tuple(self._before))

    def claim(self) -> None:
        """This process has a session, and so may have streams: the next holder is to know of it.

        One that never got so far pushes nobody out who may still be waited for. Raises ``SetupError``.
        """
        kept = [self.identity.secret, *self._before[: _PREDECESSORS - 1]]
        # Not replaced by another file, which would not be locked. A torn write is a slot without predecessors.
        data = json.dumps([secret.hex() for secret in kept]).encode()
        with writing(self._directory, variable=_VARIABLE):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, data, 0)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)


def take_slot(kind: str, service: str, relay: str) -> Slot | None:
    """The first free slot of those who do this; ``None`` where all are taken. Raises ``SetupError``."""
    directory = state_directory() / "slots"
    make_private(directory, variable=_VARIABLE)
    # A secret is told to the relay that its process was connected to, and to no other.
    name = hashlib.sha256(f"{kind} {service} {relay}".encode()).hexdigest()[:24]
    for number in range(_SLOTS):
        path = directory / f"{name}-{number}"
        with writing(directory, variable=_VARIABLE):
            descriptor = _open(path)
            if HERE.try_lock(descriptor):
                return Slot(descriptor, directory)
            os.close(descriptor)
    return None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _read(descriptor: int) -> list[bytes]:
    try:
        kept = [bytes.fromhex(secret) for secret in json.loads(os.pread(descriptor, 4096, 0) or b"[]")]
    except (ValueError, TypeError):
        return []
    return [secret for secret in kept if len(secret) == SECRET_BYTES][:_PREDECESSORS]
