"""Logging in on another machine, logging out, and confirmation before something is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from kdispatch.credentials import Credentials
from kdispatch.relay_url import RelayUrl
from tests.agent.cli.fake_relay import Shell, new_token
from tests.demo.processes import KDISPATCH, Programs

pytestmark = pytest.mark.slow  # each test starts several processes


async def test_login_stores_what_the_relay_says_it_is(kdispatch: Shell) -> None:
    """A token on standard input is stored for its handle, the relay is remembered, and the token is never shown."""
    relay, token = kdispatch.relay, new_token("adm")
    relay.handles[token] = "ann"
    ended = await kdispatch("login --relay", relay.url, stdin=f"{token}\n")
    assert (ended.status, ended.out) == (0, f"handle  ann\nrelay   {relay.url}\n")
    assert token not in ended.out + ended.err
    assert await asyncio.to_thread(Credentials().admin_token, RelayUrl.parse(relay.url)) == token
    assert (await kdispatch.here("whoami --quiet")).out == "ann\n"


async def test_a_token_that_is_no_log_in_is_refused(kdispatch: Shell) -> None:
    """Other kinds of tokens, and tokens that the relay does not know, are not stored."""
    other = await kdispatch("login --relay", kdispatch.relay.url, stdin=new_token("inv"))
    unknown = await kdispatch("login --relay", kdispatch.relay.url, stdin=new_token("adm"))
    assert (other.status, other.code, "invite accept" in other.err) == (5, "not_permitted", True)
    assert (unknown.status, unknown.code) == (4, "token_refused")
    assert not await asyncio.to_thread(Credentials().path.exists)


async def test_logout_drops_no_admin_token_unasked(kdispatch: Shell) -> None:
    """Without a terminal an admin's token is dropped with --yes only; without a log-in the error is not_logged_in."""
    await kdispatch.here("sign-up ann --relay", kdispatch.relay.url)
    await kdispatch.here("service create web")
    kept = await kdispatch.here("logout")
    assert (kept.status, kept.code, "--yes" in kept.err) == (2, "bad_request", True)
    dropped = await kdispatch.here("logout --yes --json")
    assert json.loads(dropped.out) == {
        "schema": 1, "relay": kdispatch.relay.url, "handles": ["ann"], "services": ["ann/web"], "clients": []
    }  # fmt: skip
    again = await kdispatch.here("logout")
    assert (again.status, again.code) == (4, "not_logged_in")


async def test_a_service_is_deleted_only_when_it_is_meant(kdispatch: Shell) -> None:
    """Without a terminal 'service delete' needs --yes, and then drops the stored token, too."""
    await kdispatch.here("sign-up ann --relay", kdispatch.relay.url)
    await kdispatch.here("service create web")
    kept = await kdispatch.here("service delete web")
    assert (kept.status, kept.code, list(kdispatch.relay.services)) == (2, "bad_request", ["ann/web"])
    deleted = await kdispatch.here("service delete web --yes --quiet")
    assert (deleted.status, deleted.out, kdispatch.relay.services) == (0, "ann/web\n", {})
    assert await asyncio.to_thread(Credentials().services, RelayUrl.parse(kdispatch.relay.url)) == ()


@pytest.mark.parametrize(("typed", "status", "left"), [("yes", 0, None), ("no", 2, "ann")])
async def test_a_terminal_is_asked(kdispatch: Shell, typed: str, status: int, left: str | None) -> None:
    """At a terminal the loss of an admin's token needs confirmation, and only 'yes' confirms."""
    await kdispatch.here("sign-up ann --relay", kdispatch.relay.url)
    ours, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        KDISPATCH, "logout", env=kdispatch.environment(),
        stdin=terminal, stderr=terminal, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.write(ours, f"{typed}\n".encode())
    assert await process.wait() == status
    os.close(terminal)
    os.close(ours)
    assert await asyncio.to_thread(Credentials().handle, RelayUrl.parse(kdispatch.relay.url)) == left


async def test_login_hides_what_is_typed(kdispatch: Shell) -> None:
    """At a terminal the token is requested, and not shown while it is typed."""
    token = new_token("adm")
    kdispatch.relay.handles[token] = "ann"
    ours, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        KDISPATCH, "login", "--relay", kdispatch.relay.url, env=kdispatch.environment(),
        stdin=terminal, stderr=terminal, stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    shown = b""
    while b"token: " not in shown:
        shown += await asyncio.to_thread(os.read, ours, 1000)
    os.write(ours, f"{token}\n".encode())
    assert await process.wait() == 0
    shown += os.read(ours, 10_000)
    os.close(terminal)
    os.close(ours)
    assert token.encode() not in shown
    assert await asyncio.to_thread(Credentials().handle, RelayUrl.parse(kdispatch.relay.url)) == "ann"


@pytest.mark.parametrize("line", ["agent host a/b --port 1", "agent connect a/b", "service hosts a/b", "whoami"])
async def test_ctrl_c_ends_what_waits_for_a_token(kdispatch: Shell, line: str) -> None:
    """Ctrl-C ends a command that waits for a token at once, without any input."""
    ours, terminal = os.openpty()
    arguments = [*line.split(), "--relay", kdispatch.relay.url, "--token", "-"]
    process = await asyncio.create_subprocess_exec(
        KDISPATCH, *arguments, env=kdispatch.environment(),
        stdin=terminal, stderr=terminal, stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    shown = b""
    while b"token: " not in shown:
        shown += await asyncio.to_thread(os.read, ours, 1000)
    process.send_signal(signal.SIGINT)
    try:
        assert await asyncio.wait_for(process.wait(), 5) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        os.close(terminal)
        os.close(ours)


async def test_what_create_prints_works_on_another_machine(tmp_path: Path) -> None:
    """The printed commands host and reach the service on a new machine, after its token is typed there."""
    programs = Programs(tmp_path)
    async with programs:
        dev = await programs.start("dev", KDISPATCH, "dev", "--json")
        seen = json.loads(await dev.says(r"^(\{.*\})$"))
        here = Programs(tmp_path, {"KDISPATCH_CONFIG_DIR": seen["config"]})
        created = await here.run(KDISPATCH, "service", "create", "web")
        token = re.findall(r"svc_\S+", created.out)[0]
        login, host, connect = re.findall(r"^  kdispatch (.*)$", created.err, re.MULTILINE)
        (file := tmp_path / "typed").write_text(token)
        ended = await programs.run("sh", "-c", f"{KDISPATCH} {login} < {file}")
        assert ended.status == 0, ended.err
        hosting = await programs.start("host", KDISPATCH, *host.replace("8080", str(seen["port"])).split())
        await hosting.says("is offered as dev/web")
        connecting = await programs.start("connect", KDISPATCH, *connect.replace("9090", "0").split())
        await connecting.says("dev/web is reached by")
        assert await dev.end() == 0
    assert not Path(seen["config"]).parent.exists()
