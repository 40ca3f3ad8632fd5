"""The relay's state: its content, who may read it, and the command that shows it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Reset
from kdispatch_relay.operator.token import read_operator_token
from kdispatch_relay.operator.view import lines, read_state
from kdispatch_relay.settings import is_loopback
from tests.aio.twin import running_gate, until
from tests.core.agents import Relay, connected
from tests.relay.support import Api, relay_api
from tests.relay.test_gate import _Agent, _carried
from tests.relay.test_serve import names

PATH = "/api/v1/relay/state"
TOKEN = "5f" * 20


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "operator.token"
    file.touch(0o600)
    file.write_text(f"{TOKEN}\n")
    return file


# --- who may ask --------------------------------------------------------------------------------


async def test_this_machine_may_ask(api: Api) -> None:
    """A program on the relay's machine is answered without a token."""
    answer = await api("GET", PATH)
    assert answer.status == 200
    assert answer.body["streams"] == {"asking": 0, "waiting": 0, "trying": 1, "open": 40}
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "header",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"x-forwarded-proto": "https"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"CF-Connecting-IP": "::1"},
        {"Host": "relay.example.org"},
        {"Host": "127.0.0.1.example.org:8443"},
        {"Host": "192.0.2.1"},
        {"Host": "[::1"},
    ],
    ids=lambda header: next(iter(header)) + header[next(iter(header))][:9],
)
async def test_through_a_proxy_it_is_another_machine(api: Api, header: dict[str, str]) -> None:
    """A forwarded request does not count as this machine's own, whatever its headers; nor does one for another Host."""
    answer = await api("GET", PATH, headers=header)
    assert (answer.status, answer.body["code"]) == (403, "not_permitted")


@pytest.mark.parametrize(
    ("shown", "status"), [(None, 401), (TOKEN, 200), (TOKEN[:-1] + "e", 401), ("", 401), ("\u00e9" * 40, 401)]
)
async def test_other_machines_need_the_token(
    tmp_path: Path, token_file: Path, shown: str | None, status: int
) -> None:  # fmt: skip
    """From other machines the operator's token is required, and it is sufficient."""
    async with relay_api(tmp_path / "relay.db", operator_token_file=token_file) as api:
        answer = await api("GET", PATH, shown, headers={"X-Forwarded-For": "192.0.2.7"})
        assert answer.status == status
        if status == 401:
            assert answer.body["code"] == "token_refused"
            assert TOKEN not in json.dumps(answer.body)


async def test_a_token_that_is_shown_must_be_right(api: Api) -> None:
    """An admin's token, or any token if the relay has none, is refused, on this machine too."""
    for token in (TOKEN, await api.admin()):
        answer = await api("GET", PATH, token)
        assert (answer.status, answer.body["code"]) == (401, "token_refused")


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.9", True), ("::ffff:192.0.2.1", False), ("", False)],
)
def test_loopback_addresses(host: str, is_own: bool) -> None:
    """Loopback addresses are recognised in each form in which a socket reports them."""
    assert is_loopback(host) is is_own


# --- the token's file -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (TOKEN, 0o640, "chmod 600"),
        (TOKEN, 0o604, "chmod 600"),
        ("short", 0o600, "32 to 256 characters"),
        ("a" * 300, 0o600, "32 to 256 characters"),
        ("two words of more than thirty-two characters", 0o600, "one word"),
        ("\u00e9" * 40, 0o600, "not text"),
        (None, 0, "No such file"),
    ],
)
def test_a_file_of_no_use(tmp_path: Path, content: str | None, mode: int, told: str) -> None:
    """A token file that others can read, or with a token that is too short, ends the start."""
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(KdispatchError, match=told) as caught:
        read_operator_token(file)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_of_another_program(tmp_path: Path, encoding: str) -> None:
    """Encoding marks and a line end are not part of the operator's token."""
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_bytes(f"{TOKEN}\r\n".encode(encoding))
    assert read_operator_token(file) == TOKEN


@pytest.mark.skipif(os.getuid() != 0, reason="takes root: a file of root's")
def test_a_mounted_secret(tmp_path: Path) -> None:
    """A file of root that no user may write is a mounted secret, and its mode is not the operator's to change."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o444)
    assert read_operator_token(file) == TOKEN
    os.chown(file, 1, 1)
    file.chmod(0o644)
    assert read_operator_token(file) == TOKEN


async def test_the_relay_reads_it_first(tmp_path: Path) -> None:
    """An unusable token file is reported before a database is created or a port is taken."""
    with pytest.raises(KdispatchError, match="can't be read"):
        async with relay_api(tmp_path / "relay.db", operator_token_file=tmp_path / "none"):
            pass
    assert names(tmp_path) == set()


# --- what is told ------------------------------------------------------------------------------------


async def test_figures_of_a_real_gate() -> None:
    """Sessions, hosts and streams are counted as they are; a session that was cut is counted by its code."""
    async with running_gate() as relay:
        async with _Agent.of(relay, b"\x11" * 32) as client, _Agent.of(relay, b"\x22" * 32) as host:
            await _carried(client, host)
            client.open(5)
            await host.next(frames.OPEN)
            state = relay.gate.state()
            assert (state.sessions, state.hosts, state.draining) == (2, 1, False)
            assert state.streams == {"asking": 0, "waiting": 0, "trying": 1, "open": 1}
            assert (state.cuts, state.queued, state.longest) == ({}, 0, None)
            client.send(b"\xff" * 16)
            await client.end()
            await until(lambda: relay.gate.state().sessions == 1)
        await until(lambda: relay.gate.state().sessions == 0)
        state = relay.gate.state()
        assert (state.hosts, state.cuts) == (0, {"protocol_error": 1})


async def test_a_cut_is_counted_once() -> None:
    """Whichever part ends a session, the switch's counters have it once, and the state shows these counters."""
    async with running_gate() as relay:
        cuts = relay.gate.switch.counters.cuts
        async with _Agent.of(relay, b"\x11" * 32) as first, _Agent.of(relay, b"\x11" * 32) as second:
            await first.end()  # by the switch: the second has its secret
            await until(lambda: relay.gate.state().sessions == 1)
            second.send(b"\xff" * 16)
            await second.end()  # by the link: it broke the protocol
        async with _Agent.of(relay, b"\x22" * 32):
            pass  # by the agent
        await until(lambda: relay.gate.state().sessions == 0)
        assert relay.gate.state().cuts == cuts == {"superseded": 1, "protocol_error": 1}


def test_queues_marks_and_halves() -> None:
    """Waiting bytes are counted, with the agent that has most of them; so are marks, and pending attaches."""
    from kdispatch_relay.switch.state import state_of  # noqa: PLC0415 - the only test of it

    relay = Relay()
    client, host = connected(relay)
    client.say(frame(frames.ACK, 1, 0, (1 << 20).to_bytes(8, "big")))
    host.say(frame(frames.ACK, 2, 0, (1 << 20).to_bytes(8, "big")))
    host.hear()
    client.say(frame(frames.DATA, 1, 0, bytes(5000)))

    def state() -> Any:
        return state_of(relay.switch, [client.session, host.session], since=0.0, draining=True)

    assert (state().queued, state().longest) == (5000, type(state().longest)(host.process, 5000))
    assert (state().marks, state().draining) == (0, True)
    relay.now += 1.0
    client.say(frame(frames.DATA, 1, 5000, bytes(5000)))
    relay.now += 0.1
    host.hear()
    assert (state().queued, state().longest) == (0, None)
    client.say(frame(frames.DATA, 1, 10_000, bytes(5000)))
    relay.now += 0.1  # late for the second time
    host.hear()
    assert (state().marks, state().streams["open"]) == (1, 1)
    client.say(frame(frames.RESET, 1, payload=Reset(code="cancelled").encode()))
    assert (state().marks, state().streams["open"], state().waiting) == (1, 0, 0)


# --- the command -----------------------------------------------------------------------------------------


async def test_command(api: Api, tmp_path: Path, token_file: Path) -> None:
    """``relay state`` asks the relay of this machine, and keeps the code of a refusal."""
    where = f"127.0.0.1:{api.relay.port}"
    assert (await api("GET", "/.env", headers={"Connection": "close"})).status == 404
    api.relay.limiter.limited["bad_tokens"] = 4991
    found = await asyncio.to_thread(read_state, where, None, None)
    assert lines(found)[2:] == [
        "sessions  12",
        "hosts     4",
        "streams   40 open, 1 asking a host, 0 waiting for a host, 0 looked up",
        "waiting   2 for their other end",
        "queued    1.2 MB, most of it, 800,000 bytes, for agent 4f1c09d2a8b35e6710fd42c98e6ba173",
        "marks     57",
        "cuts      1 slow_consumer",
        "arrivals  1",
        "refused   1 unknown_address",
        "limited   4,991 bad_tokens",
    ]
    with pytest.raises(KdispatchError) as caught:
        await asyncio.to_thread(read_state, where, None, token_file)
    assert caught.value.code == "token_refused"


async def test_command_with_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """For a relay with TLS, the command trusts only the certificate that it is given."""
    cert, key = certificate
    async with relay_api(tmp_path / "relay.db", tls_cert=cert, tls_key=key) as api:
        where = f"127.0.0.1:{api.relay.port}"
        assert (await asyncio.to_thread(read_state, where, cert, None))["sessions"] == 12
        with pytest.raises(KdispatchError, match="can't be used"):
            await asyncio.to_thread(read_state, where, key, None)


@pytest.mark.parametrize(
    ("answer", "code"), [(None, "relay_unreachable"), (b"{}", "not_a_relay"), (b"", "not_a_relay")]
)
async def test_nobody_there(answer: bytes | None, code: str) -> None:
    """If no relay listens, the command says so."""

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer or b""), answer or b""))
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if answer is None:
        server.close()
        await server.wait_closed()
    with pytest.raises(KdispatchError) as caught:
        await asyncio.to_thread(read_state, f"127.0.0.1:{port}", None, None)
    assert caught.value.code == code
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "expected"),
    [("--quiet", "serving\n"), ("--json", '{"schema": 1, "relay": "9a'), ("", "relay     9a1de3")],
)
async def test_command_line(api: Api, option: str, expected: str) -> None:
    """The command prints lines for people, one word with --quiet, an object with --json."""
    command = [sys.executable, "-c", "from kdispatch_relay.cli import app; app()", "state", *option.split()]
    listen = f"127.0.0.1:{api.relay.port}"
    ended = await asyncio.to_thread(
        subprocess.run, [*command, "--listen", listen], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.startswith(expected)
