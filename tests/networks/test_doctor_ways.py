"""Doctor's steps towards a relay, each blocked in another way: that step fails, and doctor skips the later ones."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import pytest
import trustme

from kdispatch.doctor.examination import NEEDED, Wishes, examine
from kdispatch.doctor.findings import Finding
from kdispatch.settings import Settings
from tests.docs.examples import free_ports
from tests.net.harness import Relay
from tests.net.tcp import Tcp, service, silent
from tests.networks.middlebox import Rules, middlebox
from tests.networks.proxies import ESTABLISHED, ScriptedProxy

pytestmark = pytest.mark.slow

_PASSWORD: Final = "hunter2"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDISPATCH_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("KDISPATCH_TOKEN", raising=False)


async def _examined(settings: Settings) -> Mapping[str, Finding]:
    found = {finding.check: finding async for finding in examine(settings, Wishes())}
    assert [check for check in found if check in NEEDED] == list(NEEDED)  # every check, in order
    return found


def _amiss(found: Mapping[str, Finding]) -> list[tuple[str, str, str | None]]:
    return [(one.check, str(one.level), one.code) for one in found.values() if one.level in {"fail", "warn"}]


def _answering(status: str, kind: str, *headers: str) -> Callable[[Tcp], Awaitable[None]]:
    async def answer(tcp: Tcp) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            if not (data := await tcp.receive()):
                return
            received += data
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Content-Length: 0", *headers, "", ""]
        await tcp.send("\r\n".join(lines).encode())

    return answer


# --- proxies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n", "proxy_auth"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "proxy_refused"),
    ],
)
async def test_a_proxy_that_says_no(answer: bytes, code: str) -> None:
    """If a proxy refuses, doctor names it and its source, hides its password, and skips the later checks."""
    async with service(ScriptedProxy(answer)) as proxy:
        url = f"http://ann:{_PASSWORD}@127.0.0.1:{proxy.port}"
        found = await _examined(Settings(relay="http://relay.test:80", insecure_plaintext=True, proxy=url))
    assert _amiss(found)[1:] == [("proxy", "fail", code)]  # the first one is the warning about plain http
    assert f"http://127.0.0.1:{proxy.port}" in found["proxy"].text and "--proxy" in found["proxy"].text
    assert {str(found[check].level) for check in ("tcp", "tls", "http", "upgrade", "token")} == {"skip"}
    assert _PASSWORD not in str(found)


async def test_a_proxy_that_is_down() -> None:
    """A closed port of the proxy is reported for the proxy, not for the relay."""
    [port] = free_ports(1)
    found = await _examined(Settings(relay="http://127.0.0.1:9", proxy=f"http://127.0.0.1:{port}"))
    assert _amiss(found) == [("proxy", "fail", "proxy_unreachable")]


async def test_a_proxy_that_knows_the_name(shared_relay: Relay) -> None:
    """Doctor leaves name resolution to the proxy, and all its steps go through the proxy."""
    url = f"http://relay.test:{shared_relay.address.port}"
    async with service(ScriptedProxy(ESTABLISHED, through=True)) as proxy:
        found = await _examined(Settings(relay=url, insecure_plaintext=True, proxy=f"http://127.0.0.1:{proxy.port}"))
    assert [check for check, _, _ in _amiss(found)] == ["config"]
    assert found["dns"].text == "left to the proxy, which resolves relay.test"
    assert found["round trip"].level == "ok"


async def test_an_unknown_name() -> None:
    """Without a proxy an unknown name fails in the check of DNS, with the code that agents end with."""
    found = await _examined(Settings(relay="https://relay.invalid", no_proxy=True))
    assert _amiss(found) == [("dns", "fail", "relay_unreachable")]


# --- in the relay's place ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        ("200 OK", "text/html", "captive_portal"),
        ("503 Service Unavailable", "text/html", "relay_unreachable"),
        ("404 Not Found", "text/plain", "not_a_relay"),
    ],
)
async def test_what_answers_in_the_relays_place(status: str, kind: str, code: str) -> None:
    """Doctor distinguishes a log-in page, an edge without its relay and another server, and names the server."""
    async with service(_answering(status, kind, "Server: an-edge")) as running:
        found = await _examined(Settings(relay=f"http://127.0.0.1:{running.port}"))
    assert _amiss(found) == [("http", "fail", code)]
    assert "(server: an-edge)" in found["http"].text


async def test_another_clock() -> None:
    """A clock minutes away from the answer's date is a warning, whichever server answers."""
    date = format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10), usegmt=True)
    async with service(_answering("404 Not Found", "text/plain", f"Date: {date}")) as running:
        found = await _examined(Settings(relay=f"http://127.0.0.1:{running.port}"))
    assert (found["clock"].level, found["clock"].hop) == ("warn", "you")
    assert "behind the relay's" in found["clock"].text


async def test_nobody_at_the_port() -> None:
    """A refused connection fails in the check of TCP, in the system's words."""
    [port] = free_ports(1)
    found = await _examined(Settings(relay=f"https://127.0.0.1:{port}"))
    assert _amiss(found) == [("tcp", "fail", "relay_unreachable")]
    assert "127.0.0.1: connection refused" in found["tcp"].text


@pytest.mark.accept
async def test_one_who_says_nothing_to_an_upgrade(shared_relay: Relay) -> None:
    """If plain requests pass and an upgrade gets no answer, doctor blames the path."""
    async with middlebox(shared_relay.address.port, Rules(buffers=1 << 30)) as box:
        found = await _examined(Settings(relay=box.url))
    assert _amiss(found) == [("buffering", "fail", "relay_unreachable")]
    assert "Nothing passes after the upgrade" in found["buffering"].text


# --- certificates -----------------------------------------------------------------------------------


@asynccontextmanager
async def _secure(certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """Run a TLS server that answers 404 with a date."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    await asyncio.to_thread(certificate.configure_cert, context)
    date = format_datetime(dt.datetime.now(dt.UTC), usegmt=True)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 404 No\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode())
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(("days", "name", "code"), [
    (-9, "127.0.0.1", "tls_expired"),
    (9, "127.0.0.1", "tls_not_yet_valid"),
    (-1, "other.test", "tls_wrong_host"),
])  # fmt: skip
async def test_certificates_that_are_not_valid(tmp_path: Path, days: int, name: str, code: str) -> None:
    """Each invalid certificate has its own code, and doctor still compares the clock, a possible cause."""
    authority = trustme.CA(organization_name="The network's own CA")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    begins = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    leaf = authority.issue_cert(name, not_before=begins, not_after=begins + dt.timedelta(days=5))
    async with _secure(leaf) as port:
        found = await _examined(Settings(relay=f"https://127.0.0.1:{port}", ca_file=str(tmp_path / "ca.pem")))
    assert _amiss(found) == [("tls", "fail", code)]
    assert found["clock"].level == "ok"


@pytest.mark.accept
async def test_no_tls_at_all() -> None:
    """A server that accepts and stays silent fails in the check of TLS, within that check's time."""
    async with service(silent) as running, asyncio.timeout(30):
        found = await _examined(Settings(relay=f"https://127.0.0.1:{running.port}"))
    assert _amiss(found) == [("tls", "fail", "relay_unreachable")]
