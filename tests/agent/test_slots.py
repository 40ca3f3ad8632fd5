"""Slots: the owner of one knows its predecessors, and no one else does."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdispatch.machine.places import Place
from kdispatch.machine.slots import SECRET_BYTES, Slot, take_slot
from kdispatch_protocol.errors import KdispatchError
from tests.guards.systems import POSIX

_RELAY = "https://relay.example"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def held(state: Path) -> Iterator[list[Slot]]:
    """Slots that are given back after the test."""
    slots: list[Slot] = []
    yield slots
    for slot in slots:
        slot.close()


def _take(held: list[Slot], kind: str = "host", service: str = "ann/web", relay: str = _RELAY) -> Slot:
    slot = take_slot(kind, service, relay)
    assert slot is not None
    slot.claim()
    held.append(slot)
    return slot


def _release(held: list[Slot], slot: Slot) -> None:
    held.remove(slot)
    slot.close()


def test_a_successor_has_the_secrets_of_those_before(held: list[Slot]) -> None:
    """Each process has its own secret; the next one knows the last four, newest first."""
    secrets: list[bytes] = []
    for _ in range(6):
        slot = _take(held)
        assert slot.identity.predecessors == tuple(reversed(secrets))[:4]
        assert len(slot.identity.secret) == SECRET_BYTES
        secrets.append(slot.identity.secret)
        _release(held, slot)
    assert len(set(secrets)) == 6


def test_a_failed_start_pushes_nobody_out(held: list[Slot]) -> None:
    """A process that never had a session has no successor, and its predecessors are still known."""
    first = _take(held)
    _release(held, first)
    for _ in range(9):
        failed = take_slot("host", "ann/web", _RELAY)
        assert failed is not None
        failed.close()
    assert _take(held).identity.predecessors == (first.identity.secret,)


def test_a_living_process_has_no_successor(held: list[Slot]) -> None:
    """A second process of the same kind gets another slot, and the secrets stay separate."""
    one, two = _take(held), _take(held)
    assert one.identity.secret not in two.identity.predecessors
    _release(held, two)
    three = _take(held)
    assert three.identity.predecessors == (two.identity.secret,)


@pytest.mark.parametrize("other", [{"kind": "connect"}, {"service": "ann/db"}, {"relay": "https://other.example"}])
def test_another_kind_service_or_relay_is_another_slot(held: list[Slot], other: dict[str, str]) -> None:
    """A secret is shown only to the relay that it was used with, by the same kind of agent."""
    _release(held, _take(held))
    assert _take(held, **other).identity.predecessors == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'["zz"]', b'["ab"]', b'{"a": 1}', b"\xff\xfe"])
def test_a_damaged_slot_is_an_empty_one(held: list[Slot], state: Path, content: bytes) -> None:
    """An unreadable slot has no predecessors, and the agent starts all the same."""
    _release(held, _take(held))
    [path] = (state / "slots").iterdir()
    path.write_bytes(content)
    assert _take(held).identity.predecessors == ()


def test_the_file_is_private_and_the_secret_is_not_shown(held: list[Slot], state: Path) -> None:
    """Mode 0600 in a directory of mode 0700; no text form of an identity contains its secret."""
    slot = _take(held)
    [path] = (state / "slots").iterdir()
    if sys.platform != "win32":  # there modes say nothing
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert slot.identity.secret.hex() not in repr(slot.identity) + str(slot.identity)


def test_a_full_disk(held: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that cannot be written is a setup failure: the command warns, and the agent goes on."""
    slot = _take(held)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kdispatch.machine.slots.os.write", full)
    with pytest.raises(KdispatchError, match="No space left"):
        slot.claim()


def test_a_state_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported as a setup failure, which the command turns into a warning."""
    (tmp_path / "state").write_bytes(b"a file is in the way")
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path / "state"))
    with pytest.raises(KdispatchError):
        take_slot("host", "ann/web", _RELAY)


@POSIX
def test_as_many_as_there_are(held: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """If all slots are in use the agent works without one, and the try leaves no file open."""
    monkeypatch.setattr("kdispatch.machine.slots._SLOTS", 2)
    _take(held)
    _take(held)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert take_slot("host", "ann/web", _RELAY) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _as_if(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    """From now on this process runs in another place."""
    other = dataclasses.replace(Place.here(), **changed)
    monkeypatch.setattr("kdispatch.machine.slots.Place.here", lambda: other)


@pytest.mark.skipif(sys.platform == "win32", reason="Wine 8 has no CopyFile2, which shutil.copy2 calls")
def test_a_copy_has_no_predecessors(held: list[Slot], state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied state directory, on this machine or another, has no predecessors and ends no session of its original."""
    first = _take(held)
    shutil.copytree(state, state.parent / "copy", copy_function=shutil.copy2)
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(state.parent / "copy"))
    second = _take(held)
    assert second.identity.predecessors == ()
    assert second.told is not None and "an agent on this machine wrote its slots" in second.told
    _release(held, second)
    third = _take(held)
    assert (third.identity.predecessors, third.told) == ((second.identity.secret,), None)
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(state))
    _release(held, first)
    assert _take(held).identity.predecessors == (first.identity.secret,)


def test_another_machine_keeps_its_slot(held: list[Slot], state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If locks don't work between machines, each has its own slots, and reports that once."""
    first = _take(held)
    _release(held, first)  # like a lock that is held on another machine, on some file systems
    with monkeypatch.context() as there:
        _as_if(there, name="lab-2", machine="ab", boot="b", processes="pid:[1]")
        second = _take(held)
        assert second.identity.predecessors == () and second.told is not None
        _release(held, second)
        third = _take(held)
        assert (third.identity.predecessors, third.told) == ((second.identity.secret,), None)
        _release(held, third)
    again = _take(held)
    assert (again.identity.predecessors, again.told) == ((first.identity.secret,), None)
    assert len(list((state / "slots").iterdir())) == 2


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        ({"boot": "next"}, True),  # a reboot
        ({"name": "c2", "machine": "ab", "processes": "pid:[1]"}, True),  # a container's successor: the same kernel
        ({"boot": "next", "hardware": "cd"}, False),  # a clone with its own network card
        ({"boot": "next", "machine": "ab"}, False),
        ({"boot": "next", "name": "lab-2"}, False),
    ],
    ids=["reboot", "next container", "clone", "another machine id", "another name"],
)
def test_who_is_a_successor(
    held: list[Slot], monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], known: bool
) -> None:
    """The next process on this kernel is a successor, and so is one after a reboot; a clone of the machine is not."""
    first = _take(held)
    _release(held, first)
    _as_if(monkeypatch, **changed)
    assert _take(held).identity.predecessors == ((first.identity.secret,) if known else ())


def test_too_many_machines(held: list[Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """If other machines use all slots, one of them loses its predecessors, and no process becomes its successor."""
    monkeypatch.setattr("kdispatch.machine.slots._SLOTS", 2)
    for number in range(5):
        with monkeypatch.context() as there:
            _as_if(there, name=f"lab-{number}", machine=f"{number}", boot=f"{number}")
            slot = _take(held)
            assert slot.identity.predecessors == ()
            _release(held, slot)


@pytest.mark.parametrize("lost", ["inode", "place"])
def test_a_slot_of_an_unknown_place(held: list[Slot], state: Path, lost: str) -> None:
    """A slot without the place where it was written has no predecessors."""
    _release(held, _take(held))
    [path] = (state / "slots").iterdir()
    content = json.loads(path.read_text())
    (content["file"] if lost == "inode" else content).pop(lost)
    path.write_text(json.dumps(content))
    assert _take(held).identity.predecessors == ()


def test_a_restarted_container(held: list[Slot], state: Path) -> None:
    """A file system that was mounted again has another device number, but the file is the same."""
    first = _take(held)
    _release(held, first)
    [path] = (state / "slots").iterdir()
    content = json.loads(path.read_text())
    content["file"]["device"] += 1
    path.write_text(json.dumps(content))
    assert _take(held).identity.predecessors == (first.identity.secret,)
