"""Where a process runs: no command touches what may belong to another machine."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from kdispatch.machine import records
from kdispatch.machine.operating_system import HERE
from kdispatch.machine.places import Place
from kdispatch.machine.records import Record, hold, living

KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
AGENT: Final = "0123456789ab"
#: How a place differs from this one: another machine, another container, a clone, another boot of a renamed machine.
FOREIGN: Final[dict[str, dict[str, str]]] = {
    "machine": {"name": "lab-2", "machine": "ab" * 16, "boot": "b", "processes": "pid:[1]", "hardware": "cd" * 16},
    "same boot, another machine id": {"machine": "ab" * 16},
    "container": {"processes": "pid:[1]"},
    "clone": {"boot": "b", "hardware": "cd" * 16},
    "renamed": {"boot": "b", "name": "lab-2"},
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "state" / "agents"


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with kdispatch."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def _fields(pid: int, **changed: Any) -> dict[str, Any]:
    """A record of an agent with this pid, in this place except for the ``changed`` fields."""
    record = Record(
        id=AGENT, kind="host", service="ann/web", address="127.0.0.1", port=8080, relay="http://127.0.0.1:1",
        drain_time=0.0, host="fedc" * 8, pid=pid, place=Place.here(),
        process_started=HERE.process_started(pid),
    )  # fmt: skip
    fields = {"schema": 1, **dataclasses.asdict(record)}
    place = changed.pop("place", {})
    fields["place"] = None if place is None else {**fields["place"], **place}
    return {**fields, **changed}


def _write(state: Path, fields: dict[str, Any]) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    path = state / f"{AGENT}.json"
    path.write_text(json.dumps(fields))
    path.with_suffix(".sock").touch()
    path.with_suffix(".log").touch()
    return path


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KDISPATCH, *arguments], capture_output=True, text=True, timeout=30, check=False)


def _run_each_command(innocent: subprocess.Popen[bytes]) -> str:
    """Run every command that may signal or tidy up; returns the output of the last 'agent stop'."""
    for arguments in (
        ["status"], ["status", "--json"], ["status", "--quiet"], ["agent", "stop", "ann/web"],
        ["agent", "stop", AGENT, "--now"], ["agent", "stop", AGENT[:4]],
    ):  # fmt: skip
        done = _run(*arguments)
        assert "Traceback" not in done.stderr
        assert innocent.poll() is None, arguments
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("locked", [False, True], ids=["free", "locked"])
@pytest.mark.parametrize("place", [*FOREIGN.values(), None], ids=[*FOREIGN, "unknown"])
def test_strangers_live(
    state: Path, innocent: subprocess.Popen[bytes], place: dict[str, str] | None, locked: bool
) -> None:
    """A record of another or an unknown place stays, with its socket and log, and no process with its pid is killed."""
    path = _write(state, _fields(innocent.pid, place=place))
    before = path.read_bytes()
    with path.open("rb") as file:
        if locked:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said = _run_each_command(innocent)
    assert path.read_bytes() == before
    assert path.with_suffix(".sock").exists() and path.with_suffix(".log").exists()
    (agent,) = json.loads(_run("status", "--json").stdout)["agents"]
    assert (agent["id"], agent["state"]) == (AGENT, "elsewhere")
    assert agent["whereabouts"] in said and "[unknown_agent]" in said
    if place and "name" in place:
        assert agent["machine"] == "lab-2" and f"{AGENT} runs on machine lab-2" in said


@pytest.mark.slow
def test_a_number_that_was_used_again(state: Path, innocent: subprocess.Popen[bytes]) -> None:
    """A process with the agent's pid and another start time is another process, and gets no signal."""
    path = _write(state, _fields(innocent.pid, process_started="1"))
    with path.open("rb") as file:  # otherwise the record would just be removed
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said = _run_each_command(innocent)
        assert path.exists()
    assert "[busy]" in said
    assert "No agent" in _run("status").stderr and not path.exists()  # no process holds it any more
    assert innocent.poll() is None


def test_a_signal_to_the_very_process(innocent: subprocess.Popen[bytes]) -> None:
    """A process gets a signal only if its start time is right, with and without the system's handles."""
    began = HERE.process_started(innocent.pid)
    assert began is not None
    for other in (None, "1", f"{began}0"):
        assert not HERE.ask_to_stop(innocent.pid, other)
        assert not HERE.end_now(innocent.pid, other)
    assert innocent.poll() is None
    assert HERE.ask_to_stop(innocent.pid, began)
    assert innocent.wait(5) == -signal.SIGTERM
    assert not HERE.ask_to_stop(innocent.pid, began)


def test_a_signal_without_handles(innocent: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without process handles, the start time is checked all the same."""
    monkeypatch.delattr(os, "pidfd_open")
    began = HERE.process_started(innocent.pid)
    assert not HERE.end_now(innocent.pid, "1")
    assert HERE.end_now(innocent.pid, began)
    assert innocent.wait(5) == -signal.SIGKILL


def test_when_a_process_began() -> None:
    """Two consecutive processes have different start times, and a process sees the same of itself as others do."""
    code = """if True:
        import os; from kdispatch.machine.operating_system import HERE
        print(HERE.process_started(os.getpid()), flush=True); input()"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        own = process.stdout.readline().decode().strip()
        assert own == HERE.process_started(process.pid) != HERE.process_started(os.getpid())
        process.stdin.close()
    assert HERE.process_started(process.pid) is None


def test_another_boot_of_this_machine(state: Path) -> None:
    """A record from before a reboot is removed once its lock is free; a locked one belongs to a clone."""
    path = _write(state, _fields(1, place={"boot": "before"}))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (record,) = living()
        assert not record.is_here
    assert living() == [] and not path.exists()


def test_what_a_container_leaves(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of killed containers on this machine the newest records are kept; a held one always is."""
    monkeypatch.setattr(records, "_ELSEWHERE_KEPT", 2)
    state.mkdir(parents=True)
    paths = []
    for number in range(5):
        fields = _fields(1, place=FOREIGN["container"], id=f"{number}", started=f"2026-01-0{number + 1}T00:00:00")
        paths.append(state / f"{number}.json")
        paths[-1].write_text(json.dumps(fields))
    (state / "far.json").write_text(json.dumps(_fields(1, place=FOREIGN["machine"], id="far")))
    with paths[0].open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = hold(Record.decode(json.dumps(_fields(os.getpid(), id="own")).encode()) or pytest.fail("no record"))
        left = {path.name for path in state.glob("*.json")}
    held.remove()
    os.close(held._descriptor)
    assert left == {"0.json", "3.json", "4.json", "own.json", "far.json"}


def test_an_agent_that_is_here(state: Path) -> None:
    """What this process holds is here, and what it wrote is read again unchanged."""
    here = Place.here()
    assert here.counts_like(Place.here()) and here.same_kernel(here) and not here.rebooted_from(here)
    held = hold(Record.decode(json.dumps(_fields(os.getpid())).encode()) or pytest.fail("no record"))
    try:
        (record,) = living()
        assert record.is_here and record.place == here
        assert (record.pid, record.process_started) == (os.getpid(), HERE.process_started(os.getpid()))
    finally:
        held.remove()
        os.close(held._descriptor)


@pytest.mark.parametrize("written", [None, [], "lab-2", {}, {"name": "lab-2"}, {**FOREIGN["machine"], "boot": 1}])
def test_a_place_that_is_none(written: object) -> None:
    """Anything but a place's five texts is an unknown place."""
    assert Place.read(written) is None
    record = Record.decode(json.dumps({**_fields(1), "place": written}).encode())
    assert record is not None and record.place is None and not record.is_here


def test_places_are_cheap() -> None:
    """A command that compares a hundred records determines its own place that often in a moment."""
    began = time.perf_counter()
    for _ in range(100):
        Place.here()
    assert time.perf_counter() - began < 0.5
