"""Records of the agents that run here as this user, in ``agents/`` of the state directory.

An agent holds a lock on its record while its process lives. A command that gets
the lock knows that the agent is gone, whatever process has its pid now, and
removes the record. Logs stay, the newest hundred of them.

That holds on one machine. A record says where its process runs, because a state
directory may be shared with other machines and containers, or be a copy. Records
of another place, or of an unknown one, are left alone: here nothing shows
whether their agents live, and their pids are other processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from kdispatch.machine.control import bind
from kdispatch.machine.operating_system import HERE
from kdispatch.machine.places import Place
from kdispatch.machine.private_files import open_private, private_lock, writing
from kdispatch.settings import state_directory
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError

__all__ = [
    "Ending",
    "HeldRecord",
    "Record",
    "agents_directory",
    "find",
    "hold",
    "living",
    "log_file",
    "new_id",
    "record_file",
]

SCHEMA: Final = 1
_VARIABLE: Final = "KDISPATCH_STATE_DIR"
_PREFIX: Final = 4  # shortest prefix of an id that is accepted, if it is unique
_LOGS_KEPT: Final = 100  # logs of agents that are gone
_ELSEWHERE_KEPT: Final = 100  # records of agents that are gone, together with their containers
#: A record that has just been removed (another machine does not wait for our lock), one that root wrote under sudo, or
#: something that is not a record. The other records are read anyway.
_NOT_OURS: Final = (FileNotFoundError, PermissionError, IsADirectoryError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known about one running agent. ``host`` and ``withdraw_token`` are set for a host.

    ``control`` is the address of its control socket, see :mod:`kdispatch.machine.control`. :func:`hold` sets ``place``
    and ``process_started``, which identify the process of ``pid``; without them that process is unknown.
    """

    id: str
    kind: str
    service: str
    address: str
    port: int
    relay: str
    drain_time: float
    host: str | None = None
    log: str | None = None
    withdraw_token: str | None = None
    draining: bool = False
    control: str | None = None
    control_token: str | None = None
    pid: int = dataclasses.field(default_factory=os.getpid)
    started: str = dataclasses.field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"))
    place: Place | None = None
    process_started: str | None = None
    addresses: list[str] | None = None  # all listening addresses of a client

    @property
    def is_here(self) -> bool:
        """Whether ``pid`` is a process that this one can see and signal."""
        return self.place is not None and self.place.counts_like(Place.here())

    @property
    def whereabouts(self) -> str:
        """Where it runs, for people: ``runs on machine lab-2``."""
        if self.place is None:
            return "runs on a machine that its record does not name"
        return f"runs {self.place.seen_from(Place.here())}"

    def encode(self) -> bytes:
        """The content of the record's file."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self | None:
        """Decode a file's content; ``None`` if this version can't read it."""
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            fields = json.loads(data)
            if fields.pop("schema", None) == SCHEMA:
                fields["place"] = Place.read(fields.get("place"))
                # A newer version may write more fields; its agents can still be stopped.
                return cls(**{name: value for name, value in fields.items() if name in _names(cls)})
        return None


def _names(record: type[Record]) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def agents_directory() -> Path:
    """The directory of records and logs; it may not exist yet."""
    return state_directory() / "agents"


def new_id() -> str:
    """A new agent id. It only names the record and the log on this machine."""
    return secrets.token_hex(6)


def log_file(agent: str) -> Path:
    """The log of an agent in the background."""
    return agents_directory() / f"{agent}.log"


def record_file(agent: str) -> Path:
    """The record of an agent."""
    return _path(agents_directory(), agent)


class HeldRecord:
    """This process's own record, held until the process ends."""

    def __init__(self, record: Record, descriptor: int, control: socket.socket) -> None:
        self._record = record
        self._descriptor = descriptor  # open until the process ends: its lock proves that the process lives
        self.control = control

    @property
    def control_token(self) -> str:
        """The token for a request at the control socket."""
        return self._record.control_token or ""

    def draining(self) -> None:
        """Record that the agent is ending, so that it need not be asked again."""
        # If this fails, for example on a full disk, running connections may still end normally.
        with contextlib.suppress(KdispatchError, OSError), _locked() as directory:
            self._record = dataclasses.replace(self._record, draining=True)
            if _path(directory, self._record.id).exists():
                _write(self._descriptor, self._record)

    def remove(self) -> None:
        """The agent ends now. The process's end releases the lock. On Windows the next command removes the record."""
        self.control.close()
        with contextlib.suppress(KdispatchError, OSError), _locked() as directory:
            _forget(_path(directory, self._record.id))


def hold(record: Record) -> HeldRecord:
    """Write and hold this process's record, with a control socket; raises ``SetupError`` if that is not possible."""
    with _locked() as directory, writing(directory, variable=_VARIABLE):
        path = _path(directory, record.id)
        # Before the socket, because a command that finds the record of a dead agent removes both.
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        control: socket.socket | None = None
        try:
            HERE.try_lock(descriptor)  # can't fail: the name is new
            control, address = bind(_control_path(path))
            record = dataclasses.replace(
                record,
                control=address,
                control_token=secrets.token_urlsafe(32),
                place=Place.here(),
                process_started=HERE.process_started(record.pid),
            )
            _write(descriptor, record)
            _forget_old_records(directory)
            _forget_old_logs(directory)
        except BaseException:
            os.close(descriptor)
            if control is not None:
                control.close()
            _forget(path)
            raise
    return HeldRecord(record, descriptor, control)


def living() -> list[Record]:
    """The running agents, oldest first, and those of other places, which may run. Removes records of dead agents."""
    if not agents_directory().is_dir():
        return []
    found, gone = [], []
    here = Place.here()
    with _locked() as directory, writing(directory, variable=_VARIABLE):
        for path, descriptor, record in _records(directory):
            if record is None:
                continue  # written by another version
            if _may_be_removed(record, here) and HERE.try_lock(descriptor):
                gone.append(path)
            else:
                found.append(record)
        for path in gone:  # now that they are closed: Windows removes no open file
            _forget(path)
    return sorted(found, key=lambda record: (record.started, record.id))


def find(records: Sequence[Record], name: str) -> list[Record]:
    """The records meant by ``name``: an agent's or host's id or its prefix, HANDLE/NAME, or NAME.

    A full id is preferred to a service, and a service to a prefix. Raises
    ``unknown_agent``, and ``bad_request`` if the name is ambiguous.
    """
    if whole := [record for record in records if name in {record.id, record.host}]:
        return whole
    if "/" in name:
        named = [record for record in records if record.service == name]
    else:
        named = [record for record in records if record.service.partition("/")[2] == name]
        _one_of({record.service for record in named}, name)
    if not named and len(name) >= _PREFIX:
        named = [r for r in records if r.id.startswith(name) or (r.host or "").startswith(name)]
        _one_of({record.id for record in named}, name)
    if not named:
        raise KdispatchError("unknown_agent", f"No agent {name!r} runs here as this user.")
    return named


def _one_of(names: set[str], name: str) -> None:
    if len(names) > 1:
        text = f"{name!r} may mean {' or '.join(sorted(names))}."
        raise SetupError("bad_request", text, hint="Write the full name or id.")


class Ending:
    """Tells from its lock when the process of a local agent is gone. Create this before asking the agent to end."""

    def __init__(self, record: Record) -> None:
        self._path = _path(agents_directory(), record.id)
        self._descriptor: int | None = None
        with contextlib.suppress(FileNotFoundError):
            self._descriptor = open_private(self._path, os.O_RDWR)

    def gone(self) -> bool:
        """Whether the process is gone; then its record is removed, too."""
        if self._descriptor is not None and HERE.try_lock(self._descriptor):
            self.close()
            _forget(self._path)
        return self._descriptor is None

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def _locked() -> Iterator[Path]:
    directory = agents_directory()
    with private_lock(directory, variable=_VARIABLE):
        yield directory


def _records(directory: Path) -> Iterator[tuple[Path, int, Record | None]]:
    """All records of this user, each with an open descriptor that is closed at the next step."""
    for path in directory.glob("*.json"):
        try:
            descriptor = open_private(path, os.O_RDWR)
        except _NOT_OURS:
            continue
        try:
            yield path, descriptor, Record.decode(os.read(descriptor, 1 << 16))
        finally:
            os.close(descriptor)


def _may_be_removed(record: Record, here: Place) -> bool:
    """Whether a free lock proves that the agent is gone: it ran here, or in another boot of this machine."""
    return record.place is not None and (record.place.counts_like(here) or here.rebooted_from(record.place))


def _forget_old_records(directory: Path) -> None:
    """Remove the oldest records of killed containers: each start of a container is another place.

    This kernel ran them, so their free locks prove that they are gone.
    """
    here = Place.here()
    gone = []
    for path, descriptor, record in _records(directory):
        place = None if record is None else record.place
        if record is not None and place is not None and here.same_kernel(place) and HERE.try_lock(descriptor):
            gone.append((record.started, path))
    for _, path in sorted(gone, reverse=True)[_ELSEWHERE_KEPT:]:
        _forget(path)


def _path(directory: Path, agent: str) -> Path:
    return directory / f"{agent}.json"


def _control_path(record: Path) -> Path:
    return record.with_suffix(".sock")


def _forget(record: Path) -> None:
    """Remove the files of a dead agent; the record last, because it leads to the others."""
    HERE.remove(_control_path(record))
    HERE.remove(record)


def _write(descriptor: int, record: Record) -> None:
    data = record.encode()
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, data)  # first: if the disk is full, the old record stays
    os.ftruncate(descriptor, len(data))


def _forget_old_logs(directory: Path) -> None:
    logs = [path for path in directory.glob("*.log") if not path.with_suffix(".json").exists()]
    logs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in logs[_LOGS_KEPT:]:
        HERE.remove(path)
        HERE.remove(path.with_suffix(".log.1"))
