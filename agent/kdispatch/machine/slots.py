"""An agent's slot. With it, a successor can prove at once that a killed process is gone.

A slot is a locked file of this user. It has the secrets of the process that holds it
and of its predecessors, newest first. A process that gets the lock knows that those
are gone, and can prove whose successor it is. The relay then tells their peers at
once, which would otherwise wait in vain.

In a copy of the file, or on another machine that shares it, the lock proves nothing:
the processes may live, and a successor's claim would end their sessions. So a slot
names the file and the place that it was written in, and its secrets count only there.
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
from kdispatch.machine.private_files import make_private, open_private, writing
from kdispatch.settings import state_directory

__all__ = ["ProcessIdentity", "Slot", "take_slot"]

SECRET_BYTES: Final = 32
#: As many as HELLO accepts. If an agent is killed more often within a grace, some peers wait for its full length.
_PREDECESSORS: Final = 4
#: Agents of one user with the same task at one relay; further ones run without a slot.
_SLOTS: Final = 64
#: A slot with all its secrets and a long path takes half of it.
_MOST_BYTES: Final = 16 * 1024
_VARIABLE: Final = "KDISPATCH_STATE_DIR"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process's secret, which only relays may see, and those of the processes that it replaces."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    predecessors: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class _Written:
    """Content of a slot's file. A new or damaged one, or one of an older version, has no place."""

    secrets: tuple[bytes, ...] = ()
    place: Place | None = None
    file: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, descriptor: int) -> Self:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            content = json.loads(os.read(descriptor, _MOST_BYTES) or b"{}")
            kept = tuple(bytes.fromhex(secret) for secret in content.get("secrets", ()))
            file = content.get("file", {})
        except (ValueError, TypeError, AttributeError):
            return cls()
        kept = tuple(secret for secret in kept if len(secret) == SECRET_BYTES)[:_PREDECESSORS]
        return cls(kept, Place.read(content.get("place")), file if isinstance(file, dict) else {})

    def is_copy(self, now: Mapping[str, Any]) -> bool:
        """Whether the content was written to a file other than this one.

        A container's file system has another device number after a restart, and a volume may have another path.
        """
        same = {name for name, value in now.items() if self.file.get(name) == value}
        return "inode" not in same or len(same) == 1

    def is_foreign(self, here: Place) -> bool:
        """Whether its process may live although the lock is free here."""
        return self.place is None or not (here.same_kernel(self.place) or here.rebooted_from(self.place))


class Slot:
    """A held slot. The end of the process releases it in every case.

    ``told`` is a message for the user, or ``None``.
    """

    def __init__(self, descriptor: int, path: Path, before: tuple[bytes, ...], told: str | None) -> None:
        self._directory = path.parent
        self._path = path
        self._descriptor = descriptor
        self._before = before
        self.told = told
        self.identity = ProcessIdentity(predecessors=before)

    def claim(self) -> None:
        """Record that this process has a session and may have streams, for the next holder of the slot.

        A process that never gets so far does not displace others that peers may still wait for. Raises ``SetupError``.
        """
        kept = [self.identity.secret, *self._before[: _PREDECESSORS - 1]]
        content = {
            "place": asdict(Place.here()),
            "file": _file(self._descriptor, self._path),
            "secrets": [secret.hex() for secret in kept],
        }
        # Written in place, because a new file would not be locked. A torn write is a slot without predecessors.
        with writing(self._directory, variable=_VARIABLE):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, json.dumps(content).encode())

    def close(self) -> None:
        """Release the slot for another process."""
        os.close(self._descriptor)


def take_slot(kind: str, service: str, relay: str) -> Slot | None:
    """The first free slot for this task; ``None`` if all are taken. Raises ``SetupError``."""
    directory = state_directory() / "slots"
    make_private(directory, variable=_VARIABLE)
    # A secret is sent only to the relay that its process was connected to.
    name = hashlib.sha256(f"{kind} {service} {relay}".encode()).hexdigest()[:24]
    paths = [directory / f"{name}-{number}" for number in range(_SLOTS)]
    # Slots of another machine stay with it. If there are too many such machines, the first of them loses its slot.
    return _free(paths, spare=True) or _free(paths, spare=False)


def _free(paths: list[Path], *, spare: bool) -> Slot | None:
    """The first free slot. With ``spare``, slots written by another machine are left to it."""
    here, others = Place.here(), ""
    for path in paths:
        with writing(path.parent, variable=_VARIABLE):
            descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
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
    return f"{state} is a copy, or shared: an agent {others} wrote its slots. This agent uses a new identity."


def _file(descriptor: int, path: Path) -> dict[str, Any]:
    """Distinguishes a file from its copies."""
    status = os.fstat(descriptor)
    return {"inode": status.st_ino, "device": status.st_dev, "path": str(path)}
