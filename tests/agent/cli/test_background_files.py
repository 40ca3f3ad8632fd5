"""Records of running agents, their logs, and the line to the command that started an agent."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kdispatch.machine import records
from kdispatch.machine.background import BackgroundFailed, BoundedLog, start
from kdispatch.machine.operating_system import HERE
from kdispatch.machine.records import Ending, Record, find, hold, living
from kdispatch_protocol.errors import KdispatchError

ONE = Record(
    id="0123456789ab", kind="host", service="ann/web", address="127.0.0.1", port=8080, relay="http://127.0.0.1:1",
    drain_time=30.0, host="fedc" * 8,
)  # fmt: skip
TWO = dataclasses.replace(ONE, id="0123ffffffff", kind="connect", host=None)
OTHER = dataclasses.replace(ONE, id="aaaa00000000", service="bob/web", host="ab" * 16)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "agents"


def _close(held: records.HeldRecord) -> None:
    """Do what the kernel does when a process is killed."""
    held.control.close()
    os.close(held._descriptor)


def _living() -> list[Record]:
    unknown = {"control": None, "control_token": None, "place": None, "process_started": None}
    return [dataclasses.replace(record, **unknown) for record in living()]  # type: ignore[arg-type]  # fields of it


def test_a_record_is_private_and_lives_with_its_process(state: Path) -> None:
    """Only the user can access a record, its socket and its directory, and they exist only while it is held."""
    held = hold(ONE)
    path = state / f"{ONE.id}.json"
    control = path.with_suffix(".sock")
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, control, state)] == [0o600, 0o600, 0o700]
    assert json.loads(path.read_text())["schema"] == 1
    assert _living() == [ONE]
    held.draining()
    assert [record.draining for record in living()] == [True]
    _close(held)
    assert living() == [] and not path.exists() and not control.exists()


def test_an_orderly_end_removes_the_record(state: Path) -> None:
    """``remove`` deletes the record before the process is gone, and ``gone`` waits for the process."""
    held = hold(ONE)
    ending = Ending(ONE)
    held.remove()
    assert living() == [] and not ending.gone() and not (state / f"{ONE.id}.sock").exists()
    _close(held)
    assert ending.gone() and ending.gone()


def test_what_cannot_be_read_is_left_out(state: Path) -> None:
    """A record of another version, whose agent runs, is neither listed nor removed."""
    held = hold(ONE)
    path = state / f"{ONE.id}.json"
    for text in ('{"schema": 2}', "[]", "{", '{"schema": 1, "later": true}'):
        path.write_text(text)
        assert living() == [] and path.exists()
    _close(held)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (ONE.id, [ONE]),
        ("01234", [ONE]),
        ("0123f", [TWO]),
        ("fedc" * 8, [ONE]),
        ("fedcf", [ONE]),
        ("ann/web", [ONE, TWO]),
        ("bob/web", [OTHER]),
        ("012", "unknown_agent"),
        ("0123", "bad_request"),
        ("web", "bad_request"),
        ("ann/other", "unknown_agent"),
        ("", "unknown_agent"),
    ],
)
def test_finding(name: str, meant: list[Record] | str) -> None:
    """An agent is named by its id or host id, by an unambiguous prefix of four characters, or by its service."""
    if isinstance(meant, list):
        assert find([ONE, TWO, OTHER], name) == meant
    else:
        with pytest.raises(KdispatchError) as caught:
            find([ONE, TWO, OTHER], name)
        assert caught.value.code == meant


def test_a_directory_with_a_long_name(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no unix socket is possible, the agent is asked at a port of the loopback address."""
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(state / ("x" * 100)))
    held = hold(ONE)
    (record,) = living()
    assert record.control == f"127.0.0.1:{held.control.getsockname()[1]}"
    held.remove()
    _close(held)


def test_a_name_alone() -> None:
    """NAME stands for the agents of the only service with this name."""
    assert find([ONE, TWO], "web") == [ONE, TWO]


def test_a_hundred_logs_are_kept(state: Path) -> None:
    """The oldest logs of ended agents are removed, but never a running agent's."""
    state.mkdir(parents=True)
    for number in range(103):
        log = state / f"{number:012x}.log"
        log.touch()
        os.utime(log, (number, number))
    first = dataclasses.replace(ONE, id=f"{0:012x}")
    held = hold(first)
    kept = sorted(path.stem for path in state.glob("*.log"))
    assert kept == [f"{number:012x}" for number in (0, *range(3, 103))]
    _close(held)


def test_a_full_log_begins_anew(tmp_path: Path) -> None:
    """A log has a limited size, with one older part."""
    path = tmp_path / "a.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        log = BoundedLog(path, 100, descriptor)
        for number in range(25):
            log.write(f"line {number:4}\n".encode())
    finally:
        os.close(descriptor)
    parts = path.with_suffix(".log.1").read_text(), path.read_text()
    assert all(0 < len(part) <= 100 for part in parts)
    assert parts[0] + parts[1] == "".join(
        f"line {number:4}\n" for number in range(25 - (len("".join(parts)) // 10), 25)
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_process_that_says_nothing(state: Path) -> None:
    """An agent that ends without its line is an error with its status and its log's last lines; the log stays."""
    with pytest.raises(BackgroundFailed) as caught:
        start(["no-such-command"], "adm_secret", {})
    assert caught.value.status == 2
    assert "no-such-command" in caught.value.error["text"]
    (log,) = state.glob("*.log")
    assert str(log) in caught.value.error["hint"]
    assert "adm_secret" not in log.read_text()


@pytest.mark.slow
def test_only_agents_load_structlog() -> None:
    """Commands that run no agent, including ``stop``, import neither structlog nor rich."""
    script = (
        "import sys; sys.argv = ['kdispatch', 'agent', 'stop', 'ann/web']\n"
        "from kdispatch.cli.main import run\nassert run() == 3\n"
        "print(*(m for m in ('structlog', 'rich', 'aiohttp') if sys.modules.get(m)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout == "\n"


def test_a_system_that_denies_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may not start by the preferred options starts by the next, and a last denial is an error."""
    tried: list[object] = []

    def deny(*_: object, **options: object) -> None:
        tried.append(options["creationflags"])
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(type(HERE), "spawn_options", lambda _: [{"creationflags": 7}, {"creationflags": 3}])
    monkeypatch.setattr(subprocess, "Popen", deny)
    with pytest.raises(PermissionError):
        start(["host", "ann/web"], None, {})
    assert tried == [7, 3]
