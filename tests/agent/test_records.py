"""Records of agents that a command cannot use: another user's, a newer version's, and invalid ones."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdispatch.machine.records import HeldRecord, Record, hold, living


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "agents"


def _record(agent: str = "own") -> Record:
    return Record(
        id=agent, kind="host", service="ann/web", address="127.0.0.1", port=8080, relay="http://127.0.0.1:1",
        drain_time=0.0,
    )  # fmt: skip


@pytest.fixture
def held() -> Iterator[HeldRecord]:
    """This process's own record."""
    one = hold(_record())
    yield one
    one.remove()
    os.close(one._descriptor)


@pytest.mark.usefixtures("held")
def test_a_record_of_another_user(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that root wrote under sudo hides no agent of this user, prevents no start, and stays."""
    roots = state / "aaaa.json"
    roots.write_bytes(_record("aaaa").encode())
    opens = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if Path(path) == roots:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opens(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    assert [record.id for record in living()] == ["own"]
    another = hold(_record("another"))
    another.remove()
    os.close(another._descriptor)
    assert roots.exists()


@pytest.mark.usefixtures("held")
def test_what_is_no_record(state: Path) -> None:
    """A directory, a dangling link and damaged files hide no agent, and stay."""
    (state / "aaaa.json").mkdir()
    (state / "bbbb.json").symlink_to("nothing")
    for name, content in {"cccc": b"", "dddd": b"[1]", "eeee": os.urandom(1 << 17), "ffff": b'{"schema": 1}'}.items():
        (state / f"{name}.json").write_bytes(content)
    before = {path.name for path in state.iterdir()}
    assert [record.id for record in living()] == ["own"]
    assert {path.name for path in state.iterdir()} == before


def test_a_record_of_a_newer_version() -> None:
    """An agent of a version that writes more fields is found all the same."""
    fields = json.loads(_record().encode())
    record = Record.decode(json.dumps({**fields, "mood": "fine"}).encode())
    assert record is not None and json.loads(record.encode()) == fields


def test_a_full_disk_while_an_agent_drains(held: HeldRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """If its record cannot be written any more, the agent still drains, and is still found."""

    def refuse(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        held.draining()
    assert [record.id for record in living()] == ["own"]
