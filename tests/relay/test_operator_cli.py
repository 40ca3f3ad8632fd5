"""``kdispatch relay admin``, on the database of a running relay, and of a stopped one."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.tokens import token_digest, token_id
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Reset
from kdispatch_relay.cli import app
from kdispatch_relay.operator import commands as operator_cli
from tests.relay.support import Api, relay_api
from tests.relay.test_door import relay_with
from tests.relay.test_gate import _Agent
from tests.relay.test_limits import NONE, Caller, Site

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "relay.db"))


@pytest.fixture
def run(file: Path) -> Run:
    """Run a command; returns its status and output."""

    def run(*words: str, database: str = str(file)) -> tuple[int, str, str]:
        ended = CliRunner().invoke(app, ["admin", *words, "--database", database], catch_exceptions=False)
        return ended.exit_code, ended.stdout, ended.stderr

    return run


async def ran(run: Run, *words: str) -> Any:
    """The JSON output of a command beside a relay that runs here."""
    status, out, err = await asyncio.to_thread(run, *words, "--json")
    assert (status, err) == (0, ""), err
    return json.loads(out)


# --- codes, and who may sign up -------------------------------------------------------------------


async def signed_up(api: Api, handle: str, code: str | None) -> tuple[int, str]:
    answer = await api("POST", "/api/v1/admins", code, json={"handle": handle})
    return answer.status, answer.body.get("code", "")


async def test_sign_up_by_code(file: Path, run: Run) -> None:
    """A sign-up code is valid for as many handles as it states, and a taken handle uses none up."""
    async with relay_api(file, sign_up="code") as api:
        made = await ran(run, "code", "create", "--uses", "2", "--expires", "1h")
        assert made["id"] == token_id(token_digest(made["code"]))
        assert await signed_up(api, "ann", None) == (401, "token_refused")
        assert await signed_up(api, "ann", made["code"][:-1]) == (401, "token_refused")
        assert await signed_up(api, "ann", made["code"]) == (201, "")
        assert await signed_up(api, "ann", made["code"]) == (409, "handle_taken")
        assert await signed_up(api, "bob", made["code"]) == (201, "")
        assert await signed_up(api, "eve", made["code"]) == (410, "invite_spent")
        (listed,) = (await ran(run, "code", "list"))["codes"]
        assert (listed["used"], listed["uses"], listed["revoked"], "code" in listed) == (2, 2, False, False)


async def test_a_revoked_code(file: Path, run: Run) -> None:
    """A revoked code is refused from then on."""
    async with relay_api(file, sign_up="code") as api:
        made = await ran(run, "code", "create")
        assert await ran(run, "code", "revoke", made["id"]) == {"schema": 1, "id": made["id"], "revoked": True}
        assert await signed_up(api, "ann", made["code"]) == (401, "revoked")


async def test_sign_up_closed(file: Path, run: Run) -> None:
    """While sign-up is closed, no one gets a handle, with or without a code; existing admins stay."""
    async with relay_api(file) as api:
        token = await api.admin()
    async with relay_api(file, sign_up="closed") as api:
        made = await ran(run, "code", "create")
        for code in (None, made["code"]):
            assert await signed_up(api, "bob", code) == (403, "not_permitted")
        assert (await api("GET", "/api/v1/whoami", token)).status == 200


async def test_open_sign_up_looks_at_no_code(file: Path) -> None:
    """With open sign-up, a shown token is ignored."""
    async with relay_api(file) as api:
        assert await signed_up(api, "ann", "nonsense") == (201, "")


# --- accounts -------------------------------------------------------------------------------------


async def test_accounts(file: Path, run: Run) -> None:
    """The operator sees every account, what it has and may have, and can change its quotas."""
    async with relay_api(file) as api:
        ann, _ = await api.admin("ann"), await api.admin("bob")
        await api.service(ann)
        admins = (await ran(run, "list"))["admins"]
        assert [(admin["handle"], admin["services"], admin["own_quotas"]) for admin in admins] == [
            ("ann", 1, []),
            ("bob", 0, []),
        ]
        shown = await ran(run, "quota", "ann", "--services", "1", "--streams", "0")
        assert (shown["quotas"]["services"], shown["quotas"]["streams"]) == (1, 0)
        assert shown["own_quotas"] == ["services", "streams"]
        answer = await api("POST", "/api/v1/services", ann, json={"name": "more", "access": "public"})
        assert (answer.status, answer.body["code"]) == (429, "quota_exceeded")
        await ran(run, "quota", "ann", "--services", "default")
        await api.service(ann, "more")
        assert (await ran(run, "show", "ann"))["own_quotas"] == ["streams"]


async def test_suspend_and_resume(file: Path, run: Run) -> None:
    """A suspended admin's token is refused as revoked, and is valid again afterwards; both changes are in the audit."""
    async with relay_api(file) as api:
        token = await api.admin()
        await ran(run, "suspend", "ann", "--reason", "spam")
        answer = await api("GET", "/api/v1/whoami", token)
        assert (answer.status, answer.body["code"]) == (401, "revoked")
        assert (await ran(run, "show", "ann"))["reason"] == "spam"
        await ran(run, "resume", "ann")
        assert (await api("GET", "/api/v1/whoami", token)).status == 200
        events = (await ran(run, "audit", "ann"))["events"]
        assert [event["action"] for event in events] == ["admin.resume", "admin.suspend", "sign_up"]
        assert (events[1]["actor"], events[1]["detail"]) == ("operator", {"reason": "spam"})
        assert len((await ran(run, "audit", "--limit", "1"))["events"]) == 1
        older = await ran(run, "audit", "--before", str(events[0]["id"]))
        assert [event["id"] for event in older["events"]] == [event["id"] for event in events[1:]]


@pytest.mark.slow
async def test_a_running_relay_hears_of_it(file: Path, run: Run) -> None:
    """Within two seconds after the command, a suspended admin's host is off the list, and told so."""
    async with (
        relay_with(file.parent, DEFAULT_LIMITS, **NONE) as relay,
        Caller.of(Site(relay)) as caller,
        _Agent.of(relay) as agent,
    ):
        token = await caller.admin()
        await caller("POST", "/api/v1/services", token, json={"name": "web", "access": "public"})
        offer = Offer(service="ann/web", host=host_id(agent.process, "ann/web"), digest="00" * 32, token=token)
        agent.send(frame(frames.OFFER, 1, payload=offer.encode()))
        await agent.next(frames.OFFERED)
        await ran(run, "suspend", "ann")
        assert Reset.parse((await agent.next(frames.RESET))[4]).code == "revoked"  # it waits for two seconds


# --- how it speaks --------------------------------------------------------------------------------


@pytest.mark.slow
def test_lines_and_quiet(run: Run) -> None:
    """The command prints lines for people, and with --quiet the bare values."""
    assert run("list") == (0, "There is no admin yet.\n", "")
    status, out, _ = run("code", "create")
    assert status == 0
    found = re.fullmatch(
        r"([0-9a-f]{16})  used 0 of 1 times, until \S+Z\ncode  (inv_\S+)\nUse it with: kdispatch sign-up .*\n", out
    )
    assert found is not None
    assert run("code", "list", "--quiet") == (0, f"{found[1]}\n", "")
    assert found[2] not in run("code", "list")[1] + run("code", "list", "--json")[1] + run("audit")[1]
    assert run("code", "revoke", found[1]) == (0, f"The code {found[1]} is revoked.\n", "")
    assert run("audit", "--quiet") == (0, "2\n1\n", "")
    assert re.fullmatch(r"inv_\S+\n", run("code", "create", "--quiet")[1])


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("show", "ann"), 3, "unknown_admin"),
        (("suspend", "ann"), 3, "unknown_admin"),
        (("resume", "ann"), 3, "unknown_admin"),
        (("audit", "ann"), 3, "unknown_admin"),
        (("quota", "ann", "--services", "1"), 3, "unknown_admin"),
        (("show", "\udcff"), 3, "unknown_admin"),
        (("suspend", "\udcff"), 3, "unknown_admin"),
        (("code", "revoke", "\udcff"), 3, "unknown_invite"),
        (("quota", "ann"), 2, "bad_request"),
        (("quota", "ann", "--hosts", "-1"), 2, "bad_request"),
        (("quota", "ann", "--hosts", "many"), 2, "bad_request"),
        (("suspend", "ann", "--reason", ""), 2, "bad_request"),
        (("suspend", "ann", "--reason", "a\nb"), 2, "bad_request"),
        (("code", "create", "--expires", "7"), 2, "bad_request"),
        (("code", "create", "--expires", "59s"), 2, "bad_request"),
        (("code", "create", "--expires", "9999d"), 2, "bad_request"),
        (("code", "revoke", "4f1c09d2a8b35e67"), 3, "unknown_invite"),
    ],
    ids=repr,
)
def test_errors(run: Run, words: tuple[str, ...], status: int, code: str) -> None:
    """An error is printed with its code, on request as JSON, and ends with the code's exit status."""
    ended, out, err = run(*words, "--json")
    assert (ended, out, json.loads(err)["error"]["code"]) == (status, "", code)
    ended, out, err = run(*words)
    assert (ended, out, len(err.splitlines())) == (status, "", 3)
    assert f"[{code}]" in err


def test_no_database(tmp_path: Path, run: Run) -> None:
    """Without a database, the command creates none."""
    status, _, err = run("list", database=str(tmp_path / "none.db"))
    assert (status, "There is no database" in err, (tmp_path / "none.db").exists()) == (1, True, False)
    assert "Running streams" not in err


# --- long lists -----------------------------------------------------------------------------------


def test_lists_are_read_in_pages(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts and codes are read a few at a time, and each output form has each of them once."""
    monkeypatch.setattr(operator_cli, "_PAGE", 7)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany("INSERT INTO admins (handle, created_at) VALUES (?, 5)", [(f"a{n}",) for n in range(21)])
        columns = "digest, token_id, purpose, name, uses, used, created_at, expires_at"
        rows = [(b"%d" % n, f"{n:016x}", "sign-up", "x", 1, 0, 5, 1 << 32) for n in range(20)]
        connection.executemany(f"INSERT INTO invites ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    for words, key, count in ((("list",), "admins", 21), (("code", "list"), "codes", 20)):
        plain, as_json, quiet = (run(*words, *flags) for flags in ((), ("--json",), ("--quiet",)))
        assert {(status, err) for status, _, err in (plain, as_json, quiet)} == {(0, "")}
        names = quiet[1].split()
        assert len(names) == len(set(names)) == count
        assert [name for name in names if name not in plain[1]] == []
        [line] = as_json[1].splitlines()
        assert [one.get("handle") or one["id"] for one in json.loads(line)[key]] == names
