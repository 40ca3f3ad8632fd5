"""A relay at the limits of its process reports in a sentence what is short, and goes on."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientSession

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.shortage import shortage
from kdispatch_relay.limiter import Limiter
from kdispatch_relay.rates import Recent
from kdispatch_relay.room import Room
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.store.apart import _revisions
from tests.guards.environment import inherited
from tests.net.harness import _KDISPATCH
from tests.relay.test_gate import _UPGRADE, _Agent, _request
from tests.relay.test_serve import COMMAND


@pytest.mark.parametrize(
    ("descriptors", "room"),
    [
        (None, Room(20_000, 1_024)),
        (1 << 20, Room(20_000, 1_024)),
        (64, Room(24, 8)),
        (48, Room(8, 8)),
        (1024, Room(744, 248)),
    ],
)
def test_room(descriptors: int | None, room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """Sessions and other connections fit the descriptors beside the relay's own; fewer than requested are logged."""
    assert Room.of(descriptors, 20_000, 1_024) == room
    assert len(caplog.records) == (room.sessions < 1_000)
    assert descriptors is None or room.sessions + room.arrivals + 32 <= descriptors


def test_too_few() -> None:
    """With too few descriptors a relay does not start, and says how many it needs."""
    with pytest.raises(KdispatchError, match="needs 48"):
        Room.of(47, 20_000, 1_024)
    assert Room.of(64, 0, 1_024).sessions == 0  # switched off


def test_full_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A full relay logs one line, however many sessions are refused, and one line when there is room again."""
    caplog.set_level(logging.INFO)
    limiter = Limiter(RelaySettings(), Recent(10), lambda: 0.0, 10)
    for _ in range(10):
        limiter.begin_session("")
    for _ in range(30):
        with pytest.raises(KdispatchError, match="busy"):
            limiter.begin_session("")
    assert len(caplog.records) == 1 and limiter.limited["sessions"] == 30
    limiter.end_session("")
    assert len(caplog.records) == 1
    limiter.end_session("")
    assert "30 were refused" in caplog.records[1].getMessage()


@dataclass(frozen=True)
class _Few:
    process: asyncio.subprocess.Process
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def rest(self, token: str | None = None) -> RestClient:
        return RestClient(Dialer(RelayUrl.parse(self.url)), token=token)


@pytest.fixture
async def few(tmp_path: Path) -> AsyncIterator[_Few]:
    """A relay that may open 64 files."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *COMMAND, "--listen", "127.0.0.1:0",
        env={**inherited(), "XDG_DATA_HOME": str(tmp_path)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert b"may open 64 files" in await process.stderr.readline()
        said = re.search(r"listening on (\S+)", (await process.stderr.readline()).decode())
        assert said
        yield _Few(process, said[1])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
async def test_sessions_leave_room(few: _Few) -> None:
    """With 64 descriptors there are 24 sessions, further ones get 503 and Retry-After, and REST and health answer."""
    async with AsyncExitStack() as stack:
        for number in range(24):
            await stack.enter_async_context(_Agent.of(few, bytes([number + 1]) * 32))
        for _ in range(40):
            reader, writer = await asyncio.open_connection("127.0.0.1", few.port)
            writer.write(_request(_UPGRADE))
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 503 ") and "Retry-After: 10" in head
            writer.transport.abort()
        async with asyncio.timeout(10):
            for path in ("/healthz", "/readyz"):
                async with ClientSession() as session, session.get(f"{few.url}{path}") as answer:
                    assert answer.status == 200
            async with few.rest() as rest:
                token = (await rest.sign_up("ann")).token
            for _ in range(5):
                async with few.rest(token) as rest:
                    await rest.create_service(f"web{_}")
    few.process.terminate()
    assert few.process.stderr is not None
    assert (await few.process.stderr.read()).count(b"it refuses further ones with 503") == 1


@pytest.mark.parametrize(
    ("out", "err", "status", "said"),
    [
        (b"", b"Traceback\n  File x\nMemoryError\n", 1, "failed with status 1: MemoryError."),
        (b"", b"", -9, "was ended by signal 9: it said nothing."),
        (b"{}", b"ImportError: libx.so: failed to map segment\n\n", 1, "failed to map segment."),
    ],
)
def test_a_child_that_failed(out: bytes, err: bytes, status: int, said: str) -> None:
    """A failure of the migrating process is one sentence, with what to do in the hint."""
    with pytest.raises(KdispatchError) as caught:
        _revisions(out, err, status)
    assert caught.value.text.endswith(said) and "\n" not in caught.value.text
    assert "ulimit -v" in caught.value.hint  # type: ignore[attr-defined]  # a StorageError's


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory"),
        (ImportError("x.so: failed to map segment from shared object"), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (ExceptionGroup("tasks", [OSError(24, "Too many open files")]), "Too many open files"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
    ],
)
def test_what_is_short(error: Exception, said: str) -> None:
    """Each way in which a system refuses more is reported as the resource that is exhausted."""
    assert said in (shortage(error) or "")
    assert shortage(ValueError("can't start new thread")) is None


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [100, 120, 140, 200])
async def test_little_memory(tmp_path: Path, megabytes: int) -> None:
    """However little memory a relay may have, it serves, or ends itself with three lines and no traceback."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f'ulimit -v {megabytes * 1024}; exec "$@"', "sh", _KDISPATCH, "relay", "serve",
        "--listen", "127.0.0.1:0", "--database", str(tmp_path / "relay.db"),
        env=inherited(), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            said = b""
            while line := await process.stderr.readline():
                said += line
                if b"listening" in line:
                    process.terminate()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    text = said.decode()
    assert "Traceback" not in text and "defect" not in text and 0 < len(text.splitlines()) <= 4, text
