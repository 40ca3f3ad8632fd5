"""The real console script against a relay that keeps the contract."""

from __future__ import annotations

import asyncio
import json
import re
import stat

import pytest

from kdispatch.credentials import Credentials
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.tokens import token_kind
from tests.agent.cli.fake_relay import Shell, new_token, problem

pytestmark = pytest.mark.slow  # each test starts several processes

HOST = {"host": "0f" * 8, "since": "2026-01-01T00:00:00Z", "labels": {"rack": "\x1b[31m7"}, "streams": 3}


async def test_a_first_day(kdispatch: Shell) -> None:
    """Sign up, create, list, show, hosts: relay and tokens are remembered, and NAME alone means the user's own."""
    relay = kdispatch.relay

    signed = await kdispatch("sign-up ann --quiet --relay", relay.url)
    assert (signed.status, signed.err) == (0, "")
    assert relay.handles == {signed.out.strip(): "ann"}

    created = await kdispatch("service create web")
    assert created.status == 0
    assert created.out.split() == ["service", "ann/web", "access", "public", "token", relay.services["ann/web"]]
    assert f"  kdispatch agent host ann/web --port 8080 --relay {relay.url}\n" in created.err
    assert f"  kdispatch agent connect ann/web --port 9090 --relay {relay.url}\n" in created.err

    relay.hosts["ann/web"] = [HOST]
    shown, hosts, ids = await asyncio.gather(
        kdispatch("service show --service web"),
        kdispatch("service hosts web"),
        kdispatch("service hosts ann/web --quiet"),
    )
    assert shown.out == "service    ann/web\naccess     public\npins       no\nlive hosts 1\n"
    assert hosts.out.splitlines()[1].split(maxsplit=3) == ["0f" * 8, HOST["since"], "3", "rack=\\x1b[31m7"]
    assert ids.out == "0f" * 8 + "\n"
    assert not any(ended.err or ended.status for ended in (shown, hosts, ids))

    credentials, url = Credentials(), RelayUrl.parse(relay.url)
    assert await asyncio.to_thread(credentials.admin_token, url) == signed.out.strip()
    assert await asyncio.to_thread(credentials.service_token, url, "ann/web") == relay.services["ann/web"]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in kdispatch.directory.iterdir()]
    assert modes == [0o600] * 3  # credentials, configuration, lock


async def test_json_is_one_object_with_its_schema(kdispatch: Shell) -> None:
    """With --json each result is one object with schema 1, and stderr stays empty."""
    signed = await kdispatch.here("sign-up ann --json --relay", kdispatch.relay.url)
    created = await kdispatch.here("service create web --json")
    kdispatch.relay.hosts["ann/web"] = [HOST]
    ended = await asyncio.gather(
        kdispatch.here("service list --json"), kdispatch.here("service show web --json"),
        kdispatch.here("service hosts web --json"), kdispatch.here("whoami --json"),
    )  # fmt: skip
    objects = [json.loads(one.out) for one in (signed, created, *ended)]
    assert {one.err for one in (signed, created, *ended)} == {""}
    assert [token_kind(objects[0].pop("token")), token_kind(objects[1].pop("token"))] == ["adm", "svc"]
    seen = {"service": "ann/web", "access": "public", "live_hosts": 1, "pins": False}
    unknown = {"service": None, "id": None, "name": None, "expires": None}
    assert objects == [
        {"schema": 1, "handle": "ann", "relay": kdispatch.relay.url},
        {"schema": 1, "service": "ann/web", "access": "public", "pins": False},
        {"schema": 1, "services": [seen]},
        {"schema": 1, **seen},
        {"schema": 1, "service": "ann/web", "hosts": [HOST | {"source": None, "token": None}]},
        {"schema": 1, "kind": "adm", "handle": "ann", **unknown, "relay": kdispatch.relay.url},
    ]


async def test_an_error_is_three_lines_and_its_status(kdispatch: Shell) -> None:
    """Each failure ends with its code's status and says what failed, where, and what to try."""
    url, token = kdispatch.relay.url, new_token("adm")
    kdispatch.relay.handles[token] = "ann"
    taken, nowhere, anonymous, unknown, plain, refused = await asyncio.gather(
        kdispatch.here("sign-up ann --relay", url),
        kdispatch.here("whoami"),
        kdispatch.here("service list --relay", url),
        kdispatch.here("service show ann/nothing --relay", url),
        kdispatch.here("whoami --relay http://relay.example"),
        kdispatch.here("whoami --json --relay", url, KDISPATCH_TOKEN=new_token("adm")),
    )
    assert re.fullmatch(
        r"kdispatch: ann is taken\. \[handle_taken\]\n  where: relay\n  try:   Choose another handle.*\n", taken.err
    )
    assert (taken.status, taken.out) == (1, "")
    assert (nowhere.status, nowhere.code) == (2, "bad_relay_url")
    assert (anonymous.status, anonymous.code) == (4, "not_logged_in")
    assert (unknown.status, unknown.code) == (3, "unknown_service")
    assert (plain.status, plain.code) == (2, "plaintext_refused")
    error = json.loads(refused.err)
    assert (refused.status, refused.out, error["schema"], error["error"]["code"]) == (4, "", 1, "token_refused")
    assert error["error"].keys() == {"code", "text", "hop", "hint"}


async def test_a_given_token_says_whose_a_name_is(kdispatch: Shell) -> None:
    """With a token as argument, NAME belongs to its handle; a literal token causes a warning and is not shown."""
    bob = new_token("adm")
    kdispatch.relay.handles[bob] = "bob"
    await asyncio.to_thread(Credentials().store_admin, RelayUrl.parse(kdispatch.relay.url), "ann", new_token("adm"))
    created = await kdispatch("service create db --token", bob, "--relay", kdispatch.relay.url)
    shown = await kdispatch("service show db --quiet --token - --relay", kdispatch.relay.url, stdin=f"{bob}\n")
    assert (created.status, shown.status, shown.out, shown.err) == (0, 0, "0\n", "")
    assert created.err.startswith("kdispatch: warning: others on this machine can see a token")
    assert f"agent host bob/db --port 8080 --relay {kdispatch.relay.url}\n" in created.err
    assert bob not in created.err + created.out


async def test_nothing_is_asked_for_that_could_not_be_stored(kdispatch: Shell) -> None:
    """With a damaged credentials file, no token is requested: it would be shown once and lost."""
    kdispatch.directory.mkdir()
    (kdispatch.directory / "credentials.json").write_text("{")
    (kdispatch.directory / "credentials.json").chmod(0o600)
    signed = await kdispatch.here("sign-up ann --relay", kdispatch.relay.url)
    assert (signed.status, signed.code, kdispatch.relay.seen) == (4, "not_logged_in", [])
    assert "is damaged" in signed.err


async def test_what_a_relay_sends_cannot_steer_the_terminal(kdispatch: Shell) -> None:
    """Control characters in a relay's text are escaped, and an error stays on its three lines."""

    async def refuse(request: object) -> object:
        return problem("not_permitted", 403, "\x1b]0;owned\x07\nsecond\u0085line")

    kdispatch.relay.instead = refuse  # type: ignore[assignment]  # object instead of aiohttp's types
    ended = await kdispatch.here("service show ann/web --relay", kdispatch.relay.url)
    assert ended.status == 5
    assert ended.err.splitlines()[0] == r"kdispatch: \x1b]0;owned\x07\x0asecond\x85line [not_permitted]"
    assert len(ended.err.splitlines()) == 3


async def test_a_reader_that_left_is_no_error(kdispatch: Shell) -> None:
    """A closed standard output ends a command silently, after it has stored what it had to."""
    process = await kdispatch.start("sign-up", "ann", "--relay", kdispatch.relay.url)
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]  # asyncio has no public way to close a reader
    _, err = await process.communicate()
    assert (process.returncode, err) == (141, b"")
    assert await asyncio.to_thread(Credentials().handle, RelayUrl.parse(kdispatch.relay.url)) == "ann"


async def test_ctrl_c_ends_with_130(kdispatch: Shell) -> None:
    """An interrupt while the relay is silent ends the command with 130 and without a traceback."""
    asked, over = asyncio.Event(), asyncio.Event()

    async def wait(request: object) -> object:
        asked.set()
        await over.wait()
        return problem("busy", 503)

    kdispatch.relay.instead = wait  # type: ignore[assignment]  # object instead of aiohttp's types
    process = await kdispatch.start("service", "show", "ann/web", "--relay", kdispatch.relay.url)
    await asked.wait()
    process.send_signal(2)
    out, err = await process.communicate()
    over.set()
    assert (process.returncode, out, err) == (130, b"", b"")
