"""An agent's slot: by it a process that was killed is known to be no more as soon as its successor is there.

A slot is a locked file of this user. In it are the secrets of the process that
holds it and of the last ones before, newest first. A process that gets the lock
knows that those are gone, and can prove whose successor it is; the relay then tells
their peers at once what they would otherwise wait for in vain.

The lock proves nothing in a copy of the file, nor to another machine that shares it:
those may live, and a successor's word would end their sessions. So a slot names the
file and the place that it was written in, and its secrets count there only.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from kdispatch.machine.operating_system import HERE
from kdispatch.machine.places import Place
from kdispatch.machine.private_files import make_private, writing
from kdispatch.settings import state_directory

__all__ = ["Identity", "Slot", "take_slot"]

SECRET_BYTES: Final = 32
#: As many as HELLO takes; an agent that is killed more often within a grace leaves peers to wait for its end.
_PREDECESSORS: Final = 4
#: Agents of one user that do the same at one relay; one more does without a slot.
_SLOTS: Final = 64
#: A slot with all its secrets and a long path takes half of it.
_MOST_BYTES: Final = 16 * 1024
_VARIABLE: Final = "KDISPATCH_STATE_DIR"


@dataclass(frozen=True, slots=True)
class Identity:
    """A process's secret, which nobody but relays may see, and those of the processes that it stands in for."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    predecessors: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class _Written:
    """What a slot's file holds; of one that is new, damaged or an older version's no place is known."""

    secrets: tuple[bytes, ...] = ()
    place: Place | None = None
    file: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, descriptor: int) -> Self:
        try:
            content = json.loads(os.pread(descriptor, _MOST_BYTES, 0) or b"{}")
            kept = tuple(bytes.fromhex(secret) for secret in content.get("secrets", ()))
            file = content.get("file", {})
        except (ValueError, TypeError, AttributeError):
            return cls()
        kept = tuple(secret for secret in kept if len(secret) == SECRET_BYTES)[:_PREDECESSORS]
        return cls(kept, Place.read(content.get("place")), file if isinstance(file, dict) else {})

    def is_copy(self, now: Mapping[str, Any]) -> bool:
        """Whether it was written to another file than this one.

        A container's file system has another device number after a restart, and a volume may have another path.
        """
        same = {name for name, value in now.items() if self.file.get(name) == value}
        return "inode" not in same or len(same) == 1

    def is_foreign(self, here: Place) -> bool:
        """Whether its process may live although its lock is free here."""
        return self.place is None or not (here.same_kernel(self.place) or here.rebooted_from(self.place))


class Slot:
    """A held slot. It is given back when the process ends, however that happens.

    ``told`` is what a person should know of it, if anything.
    """

    def __init__(self, descriptor: int, path: Path, before: tuple[bytes, ...], told: str | None) -> None:
        self._directory = path.parent
        self._path = path
        self._descriptor = descriptor
        self._before = before
        self.told = told
        self.identity = Identity(predecessors=before)

    def claim(self) -> None:
        """This process has a session, and so may have streams: the next holder is to know of it.

        One that never got so far pushes nobody out who may still be waited for. Raises ``SetupError``.
        """
        kept = [self.identity.secret, *self._before[: _PREDECESSORS - 1]]
        content = {
            "place": asdict(Place.here()),
            "file": _file(self._descriptor, self._path),
            "secrets": [secret.hex() for secret in kept],
        }
        # Not replaced by another file, which would not be locked. A torn write is a slot without predecessors.
        with writing(self._directory, variable=_VARIABLE):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(content).encode(), 0)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)


def take_slot(kind: str, service: str, relay: str) -> Slot | None:
    """The first free slot of those who do this; ``None`` where all are taken. Raises ``SetupError``."""
    directory = state_directory() / "slots"
    make_private(directory, variable=_VARIABLE)
    # A secret is told to the relay that its process was connected to, and to no other.
    name = hashlib.sha256(f"{kind} {service} {relay}".encode()).hexdigest()[:24]
    paths = [directory / f"{name}-{number}" for number in range(_SLOTS)]
    # Another machine keeps its slots, unless there are too many such machines: then the first of them loses its own.
    return _free(paths, spare=True) or _free(paths, spare=False)


def _free(paths: list[Path], *, spare: bool) -> Slot | None:
    """The first slot that is free; with ``spare`` those that another machine wrote are left to it."""
    here, others = Place.here(), ""
    for path in paths:
        with writing(path.parent, variable=_VARIABLE):
            descriptor = _open(path)
            if not HERE.try_lock(descriptor):
                os.close(descriptor)
                continue
            written = _Written.read(descriptor)
            copy, foreign = written.is_copy(_file(descriptor, path)), written.is_foreign(here)
            if written.place is not None and (copy or foreign):
                others = others or written.place.seen_from(here)
            if spare and foreign and not copy:
                os.close(descriptor)
                continue
        if not (copy or foreign):
            return Slot(descriptor, path, written.secrets, None)
        return Slot(descriptor, path, (), _told(path.parent.parent, others) if others else None)
    return None


def _told(state: Path, others: str) -> str:
    return f"{state} is a copy, or shared: an agent {others} wrote its slots. This agent takes an identity of its own."


def _file(descriptor: int, path: Path) -> dict[str, Any]:
    """What tells a file from its copies."""
    status = os.fstat(descriptor)
    return {"inode": status.st_ino, "device": status.st_dev, "path": str(path)}


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
