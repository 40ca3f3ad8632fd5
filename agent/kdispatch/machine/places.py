"""Where a process runs: on which machine, in which boot of it, and in which pid namespace.

State directories are shared between machines (NFS homes, container volumes) and copied
(``cp -a``, clones of virtual machines). A pid, or a free lock, means something only in the
place where it was written. So records carry their place, and their readers compare it.
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
    """``name`` is the host name, for people. Unknown values are empty.

    ``machine`` and ``hardware`` are digests, because a machine's id must not be shown.
    """

    name: str
    machine: str  # its id; in many containers there is none, then its name
    boot: str  # the kernel's boot id
    processes: str  # the pid namespace in which pids are counted
    hardware: str  # the network cards: clones have the same id and name, but other cards

    @classmethod
    def here(cls) -> Self:
        """The place of this process."""
        name = socket.gethostname()
        machine, boot, processes, hardware = HERE.place()
        return cls(
            name=name, machine=_digest(machine or name), boot=boot, processes=processes, hardware=_digest(hardware)
        )

    @classmethod
    def read(cls, fields: Any) -> Self | None:
        """Read what ``dataclasses.asdict`` has written; ``None`` for anything else."""
        names = {field.name for field in dataclasses.fields(cls)}
        if (
            not isinstance(fields, dict)
            or fields.keys() != names
            or not all(isinstance(v, str) for v in fields.values())
        ):
            return None
        return cls(**fields)

    def counts_like(self, other: Place) -> bool:
        """Whether a pid means the same process in both places."""
        return (self.machine, self.boot, self.processes) == (other.machine, other.boot, other.processes)

    def same_kernel(self, other: Place) -> bool:
        """Whether one kernel runs both, so that a lock held in one can't be taken in the other."""
        return bool(self.boot) and self.boot == other.boot

    def rebooted_from(self, other: Place) -> bool:
        """Whether both are the same machine in different boots: no process exists in both.

        A clone with other network cards is another machine. So is a renamed machine, which costs little.
        """
        if not self.boot or not other.boot or self.boot == other.boot:
            return False
        return (self.name, self.machine, self.hardware) == (other.name, other.machine, other.hardware)

    def seen_from(self, here: Place) -> str:
        """The place as users read it: ``on machine lab-2``."""
        if self.counts_like(here):
            return "on this machine"
        if self.same_kernel(here) and self.machine == here.machine:
            return f"in another container of machine {self.name}"
        return f"on machine {self.name}"


def _digest(text: str) -> str:
    return hashlib.sha256(f"kdispatch {text}".encode()).hexdigest()[:_DIGITS] if text else ""
