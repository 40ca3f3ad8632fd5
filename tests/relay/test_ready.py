"""A relay is ready if, and only if, what is written to its database would survive a restart."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kdispatch_relay import health
from tests.relay.support import Answer, Api, relay_api


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cached answer, and no commit that counts as proof for long."""
    monkeypatch.setattr(health, "_KEPT", 0.0)
    monkeypatch.setattr(health, "_PROVED", 0.05)


async def _write(api: Api, handle: str) -> Answer:
    return await api("POST", "/api/v1/admins", json={"handle": handle})


def _move(file: Path) -> None:
    file.rename(file.with_name("elsewhere.db"))


def _delete(file: Path) -> None:
    file.unlink()


def _replace(file: Path) -> None:
    shutil.copy(file, file.with_name("copy.db"))
    file.with_name("copy.db").replace(file)


def _delete_log(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


def _delete_index(file: Path) -> None:
    file.with_name(f"{file.name}-shm").unlink()


def _move_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("other"))


@pytest.mark.parametrize("harm", [_move, _delete, _replace, _delete_log, _delete_index, _move_folder])
async def test_files_that_are_not_there_any_more(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """A write to a file that is no longer the one at its path is refused, and the relay is not ready."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "relay.db"
    async with relay_api(file) as api:
        token = await api.admin("ann")
        assert (await api("GET", "/readyz")).status == 200
        harm(file)
        for answer in (await _write(api, "bob"), await api("GET", "/readyz")):
            assert (answer.status, answer.body["code"]) == (503, "storage_unavailable")
            assert answer.body["detail"] == "The relay's database file is not in its place: a change would be lost."
        assert (await api("GET", "/healthz")).status == 200
        assert (await api("GET", "/api/v1/whoami", token)).status == 200
        if harm in {_move, _delete, _move_folder}:  # nothing has created an empty one
            assert not file.exists()


async def test_files_that_are_back(tmp_path: Path) -> None:
    """Once the file is back in its place, writes are kept again."""
    file = tmp_path / "relay.db"
    async with relay_api(file) as api:
        await api.admin("ann")
        _move(file)
        assert (await _write(api, "bob")).status == 503
        file.with_name("elsewhere.db").rename(file)
        assert (await _write(api, "bob")).status == 201
        assert (await api("GET", "/readyz")).status == 200
    async with relay_api(file) as api:
        assert (await _write(api, "bob")).status == 409


async def test_asking_writes_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often readiness is asked, the disk is written to once in some seconds; a sign-up counts as well."""
    monkeypatch.setattr(health, "_PROVED", 60.0)
    file = tmp_path / "relay.db"
    async with relay_api(file) as api:
        await api.admin("ann")
        before = file.with_name("relay.db-wal").read_bytes()
        for _ in range(20):
            assert (await api("GET", "/readyz")).status == 200
        assert file.with_name("relay.db-wal").read_bytes() == before


async def test_a_lock_behind_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is locked directly after a commit is not ready, however little time has passed."""
    monkeypatch.setattr(health, "_PROVED", 60.0)
    async with relay_api(tmp_path / "relay.db", database_wait=0.05) as api:
        await api.admin("ann")
        assert (await api("GET", "/readyz")).status == 200
        with closing(sqlite3.connect(api.file, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            assert (await api("GET", "/readyz")).status == 503
        assert (await api("GET", "/readyz")).status == 200


async def test_a_file_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file's mode lets no other connection in, the relay is not ready."""
    async with relay_api(tmp_path / "relay.db") as api:
        await api.admin("ann")
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
        answer = await api("GET", "/readyz")
    assert (answer.status, answer.body["detail"]) == (503, "The relay's database can't be opened.")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
async def on_small_disk(small_disk: Path) -> AsyncIterator[Api]:
    async with relay_api(small_disk / "relay.db") as api:
        await api.admin("ann")
        yield api


async def test_a_full_disk(on_small_disk: Api) -> None:
    """On a full disk the relay is not ready and refuses writes; it is ready again as soon as there is room."""
    api = on_small_disk
    assert (await api("GET", "/readyz")).status == 200
    filler = api.file.with_name("filler")
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"x" * (4 << 20))
    await asyncio.sleep(0.06)
    answer = await api("GET", "/readyz")
    assert (answer.status, answer.body["detail"]) == (503, "The relay's database has no room on its disk.")
    assert [(await _write(api, f"a{number}")).status for number in range(3)] == [503] * 3
    filler.unlink()
    assert (await api("GET", "/readyz")).status == 200
    assert (await _write(api, "bob")).status == 201


def _command(*command: str) -> str:
    """Run a command that needs root, and return its output; skip if it can't be run here."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be made to fail here: {getattr(error, 'stderr', '') or error}")


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A disk that turns read-only at an error, as many do, and the file that gives it one."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    folder.mkdir()
    _command("mkfs.ext4", "-q", "-F", str(image))
    _command("mount", "-o", "loop,errors=remount-ro", str(image), str(folder))
    try:
        device = Path(_command("findmnt", "--noheadings", "--output", "SOURCE", str(folder)))
        trigger = Path("/sys/fs/ext4", device.name, "trigger_fs_error")
        if not os.access(trigger, os.W_OK):
            pytest.skip("no disk can be made to fail here: the kernel offers no trigger_fs_error")
        yield folder, trigger
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_disk_that_became_read_only(failing_disk: tuple[Path, Path]) -> None:
    """On a disk that the system made read-only after an error, the relay is not ready and refuses writes."""
    folder, trigger = failing_disk
    async with relay_api(folder / "relay.db") as api:
        await api.admin("ann")
        assert (await api("GET", "/readyz")).status == 200
        trigger.write_text("a test's error")
        await asyncio.sleep(0.06)
        for answer in (await api("GET", "/readyz"), await _write(api, "bob")):
            assert answer.status == 503
