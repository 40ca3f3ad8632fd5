"""A change without effect writes no row, and gives no relay anything to do."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bench.changes import Crowd
from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay import feed
from kdispatch_relay.auth import Authority, Grant, ServiceRecord
from kdispatch_relay.gate.access import AccessControl
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.records import NewToken
from kdispatch_relay.store.repository import Repository
from tests.relay.support import Api

WEB = "/api/v1/services/ann/web"
Call = tuple[str, str, dict[str, Any] | None]


def rows(file: Path) -> tuple[int, int, list[Any]]:
    """Changes, events of the audit, and all that is stored of accounts."""
    with closing(sqlite3.connect(file)) as connection:
        counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("changes", "audit")]
        tables = ("admins", "services", "invites", "tokens")
        stored = [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]
        # The time of a token's last use is written now and then.
        column = [item[1] for item in connection.execute("PRAGMA table_info(tokens)")].index("last_used_at")
    stored[-1] = [row[:column] + row[column + 1 :] for row in stored[-1]]
    return *counts, stored


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "/api/v1/services/ann/none", {"pins": True}, 404),
        ("DELETE", "/api/v1/services/ann/none", None, 404),
        ("POST", "/api/v1/services/ann/none/rotate", {}, 404),
        ("PATCH", WEB, {"access": "public"}, 200),
        ("PATCH", WEB, {"access": "public", "pins": False}, 200),
        ("DELETE", "/api/v1/tokens/0123456789abcdef", None, 404),
        ("DELETE", f"{WEB}/invites/0123456789abcdef", None, 404),
        ("DELETE", f"{WEB}/invites/0123456789abcdef?tokens=true", None, 404),
        ("DELETE", "/api/v1/services/ann/none/invites/0123456789abcdef?tokens=true", None, 404),
    ],
)
async def test_what_changes_nothing(api: Api, method: str, path: str, body: dict[str, Any] | None, status: int) -> None:
    """For what does not exist, and for what is so already, no row is written and no relay checks anything."""
    ann = await api.admin("ann")
    await api.service(ann)
    before = rows(api.file)
    answer = await api(method, path, ann, **({} if body is None else {"json": body}))
    assert answer.status == status, answer.body
    assert rows(api.file) == before
    assert not [call for call in api.gate.calls if call.startswith("recheck")]


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay does not look for changes of other processes, of which it would announce its own ones again."""
    monkeypatch.setattr(feed, "_LOOK", 600.0)


@pytest.mark.usefixtures("unwatched")
async def test_a_second_time(api: Api) -> None:
    """Revoking what is already revoked writes nothing and causes no check."""
    ann = await api.admin("ann")
    await api.service(ann)
    token = (await api("POST", "/api/v1/tokens", ann, json={"name": "x", "for": "connect", "service": "web"})).body
    invite = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})).body
    await api("POST", "/api/v1/invites/accept", invite["code"], json={})
    again = (f"/api/v1/tokens/{token['id']}", f"{WEB}/invites/{invite['id']}?tokens=true")
    for path in again:
        assert (await api("DELETE", path, ann)).status == 204
    before, calls = rows(api.file), list(api.gate.calls)
    assert calls.count("recheck ann/web") == 2
    for path in again:
        await api("DELETE", path, ann)
    assert rows(api.file) == before and api.gate.calls == calls


async def test_an_invitation_alone(api: Api) -> None:
    """Nothing that runs rests on an invitation: its end is written, and no relay checks anything."""
    ann = await api.admin("ann")
    await api.service(ann)
    invite = (await api("POST", f"{WEB}/invites", ann, json={"for": "connect"})).body
    changes, audit, _ = rows(api.file)
    assert (await api("DELETE", f"{WEB}/invites/{invite['id']}", ann)).status == 204
    assert rows(api.file)[:2] == (changes, audit + 1)
    assert not [call for call in api.gate.calls if call.startswith("recheck")]


async def test_the_operators_second_time(location: str) -> None:
    """A repeated suspension, resumption, quota or revocation by the operator is written and announced only once."""
    database = Database(location)
    await database.start()
    try:
        store, told = Repository(database), list[str]()
        store.changes.tell = told.append
        await store.accounts.create("ann", NewToken.made("adm", "x")[1], source="")
        code = await store.invites.create_code(NewToken.made("inv", "x", 1 << 40)[1], uses=1)
        works: list[tuple[Callable[[], Awaitable[bool]], int]] = [
            (lambda: store.accounts.resume("ann"), 0),
            (lambda: store.accounts.suspend("ann", "spam"), 1),
            (lambda: store.accounts.resume("ann"), 1),
            (lambda: store.accounts.set_quotas("ann", {"streams": 7}), 1),
            (lambda: store.accounts.set_quotas("ann", {"streams": None}), 1),
            (lambda: store.invites.revoke_code(code.id), 0),
        ]
        for work, tells in works:
            told.clear()
            assert await work()
            assert len(told) == tells
            before = rows(Path(location))
            assert await work()
            assert rows(Path(location)) == before and len(told) == tells
        assert await store.accounts.suspend("ann", "spam")
        told.clear()
        assert await store.accounts.suspend("ann", "fraud")  # stored and shown; nothing ends because of it
        assert not told and (await store.accounts.list("ann"))[0].suspended_for == "fraud"
        assert not await store.accounts.suspend("eve") and not await store.invites.revoke_code("0" * 16)
        assert not told
    finally:
        await database.close()


# --- what a change looks at -----------------------------------------------------------------------


class _Lines:
    """Counts the lines of the relay's code that run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> _Lines | None:
        if "kdispatch_relay" not in frame.f_code.co_filename:
            return None
        self.count += event == "line"
        return self


async def _lines(sessions: int, scope: str, file: Path) -> int:
    """The lines of the relay that run for one change of ``scope``, with this many sessions of others."""
    database = Database(str(file))
    await database.start()
    store = Repository(database)
    crowd = Crowd()
    crowd.service("own/web", 1, 3)
    crowd.fill(sessions, 3)
    switch = crowd.switch
    listed = len(switch.registry)
    access = AccessControl(Authority(store), switch, lambda: None, lambda _session: None)
    lines = _Lines()
    before = sys.gettrace()
    sys.settrace(lines)
    try:
        access.recheck(scope)
        await access.rechecked()
    finally:
        sys.settrace(before)
    assert (switch.registry.get("own/web") is None) == scope.startswith("own"), "it is not what was changed"
    assert len(switch.registry) == listed - scope.startswith("own")
    await database.close()
    return lines.count


@pytest.mark.parametrize("scope", ["own/web", "own", "ann/none", "ann"])
async def test_a_change_looks_at_what_it_touches(scope: str, tmp_path: Path, empty_database: Path) -> None:
    """With eight times the sessions and streams, a change of one service runs the same lines equally often."""
    file = Path(shutil.copy(empty_database, tmp_path / "relay.db"))
    few, many = await _lines(20, scope, file), await _lines(160, scope, file)
    assert few <= many <= few + few // 20, "it looks at others' sessions or streams"


class _Asked(Authority):
    """Counts the questions, and allows all except clients while the service is not public."""

    def __init__(self, *, public: bool) -> None:
        super().__init__(Repository(Database("/never/opened.db")))
        self.public = public
        self.asked = 0

    async def may_host(self, service: str, token: str | bytes | None) -> Grant:
        return Grant(ServiceRecord(service, "public" if self.public else "token"))

    async def may_open(self, service: str, token: str | bytes | None) -> Grant:
        self.asked += 1
        if not self.public:
            raise KdispatchError("unknown_service")
        return await self.may_host(service, token)


@pytest.mark.parametrize(("public", "asked", "left"), [(True, 1, 60), (False, 61, 0)])
async def test_tokens_that_nobody_looks_at(public: bool, asked: int, left: int) -> None:
    """A public service is checked once, however many tokens its clients have shown; a private one for each token."""
    crowd = Crowd()
    crowd.service("own/web", 3, 20, tokens=True)
    store = _Asked(public=public)
    access = AccessControl(store, crowd.switch, lambda: None, lambda _session: None)
    access.recheck("own/web")
    await access.rechecked()
    assert store.asked == asked and crowd.switch.registry.account("own").streams == left


async def test_changes_faster_than_answers() -> None:
    """Of many changes of one scope during a check, only one more check follows, for the last of them."""
    crowd = Crowd()
    crowd.service("own/web", 1, 1)
    store = _Asked(public=True)
    access = AccessControl(store, crowd.switch, lambda: None, lambda _session: None)
    for _ in range(50):
        access.recheck("own/web")
    assert len(access._work) == 1
    await asyncio.sleep(0)
    store.public = False
    for _ in range(50):
        access.recheck("own/web")
    await access.rechecked()
    assert store.asked <= 2 and crowd.switch.registry.account("own").streams == 0
