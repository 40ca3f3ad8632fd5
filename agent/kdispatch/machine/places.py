"""Where a process runs: on which machine, in which boot of it, and among which processes.

State directories are shared between machines (NFS homes, volumes of containers) and copied
(``cp -a``, clones of virtual machines). A pid, and a lock that is free, mean something only where
they were written. So what is written there carries its place, and whoever finds it compares.
"""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from typing import Any, Final, Self

from kdispatch.machine.operating_system import HERE

__all__ = ["Place"]

_DIGITS: Final = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """``name`` is the host's, for people. What the system does not tell is empty.

    ``machine`` and ``hardware`` are digests: a machine's id is not to be shown.
    """

    name: str
    machine: str  # its id; where there is none, as in many containers, its name
    boot: str  # the kernel's id of its boot
    processes: str  # the pid namespace: what a pid is counted in
    hardware: str  # the network cards: clones of a machine have the same id and name, and other cards

    @classmethod
    def here(cls) -> Self:
        """Where this process runs."""
        name = socket.gethostname()
        machine, boot, processes, hardware = HERE.place()
        return cls(
            name=name, machine=_digest(machine or name), boot=boot, processes=processes, hardware=_digest(hardware)
        )

    @classmethod
    def read(cls, fields: Any) -> Self | None:
        """What was written by ``dataclasses.asdict``; ``None`` for anything else."""
        names = {field.name for field in dataclasses.fields(cls)}
        if (
            not isinstance(fields, dict)
            or fields.keys() != names
            or not all(isinstance(v, str) for v in fields.values())
        ):
            return None
        return cls(**fields)

    def counts_like(self, other: Place) -> bool:
        """Whether a pid means the same process in both."""
        return (self.machine, self.boot, self.processes) == (other.machine, other.boot, other.processes)

    def same_kernel(self, other: Place) -> bool:
        """Whether one kernel runs both, so that a lock that one of them gets is free at the other."""
        return bool(self.boot) and self.boot == other.boot

    def rebooted_from(self, other: Place) -> bool:
        """Whether this is the same machine in a later boot, or an earlier one: no process is in both.

        A clone that has other network cards is another machine; so is one that was renamed, which costs little.
        """
        if not self.boot or not other.boot or self.boot == other.boot:
            return False
        return (self.name, self.machine, self.hardware) == (other.name, other.machine, other.hardware)

    def seen_from(self, here: Place) -> str:
        """Where it is, as people are told: ``on machine lab-2``."""
        if self.counts_like(here):
            return "on this machine"
        if self.same_kernel(here) and self.machine == here.machine:
            return f"in another container of machine {self.name}"
        return f"on machine {self.name}"


def _digest(text: str) -> str:
    return hashlib.sha256(f"kdispatch {text}".encode()).hexdigest()[:_DIGITS] if text else ""
