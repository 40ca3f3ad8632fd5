"""``kdispatch doctor`` as a process behind each middlebox: it names the problem, and who has to fix it."""

from __future__ import annotations

import asyncio
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kdispatch_protocol.tokens import format_token
from tests.first_minutes.person import Ended, Person
from tests.net.harness import Relay, sizes
from tests.net.tcp import service
from tests.networks.middlebox import ISSUER, KIB, Interception, Rules, middlebox
from tests.networks.proxies import ESTABLISHED, ScriptedProxy

pytestmark = pytest.mark.slow


@dataclass
class Told:
    """Doctor's findings by check; of several findings of one check, the worst."""

    ended: Ended
    by_check: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, ended: Ended) -> Told:
        assert ended.out, ended
        content = json.loads(ended.out)
        assert content["schema"] == 1
        return cls(ended, {finding["check"]: finding for finding in content["findings"]})

    def level(self, check: str) -> str:
        return str(self.by_check[check]["level"])

    def amiss(self) -> list[str]:
        return [check for check, finding in self.by_check.items() if finding["level"] in {"warn", "fail"}]


async def _doctor(person: Person, url: str, *arguments: str, **environment: str) -> Told:
    return Told.of(await person.runs("doctor", "--json", "--relay", url, *arguments, environment=environment))


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "h")


@pytest.fixture
def port(shared_relay: Relay) -> int:
    return shared_relay.address.port


async def test_a_free_way(person: Person, port: int) -> None:
    """On a free path every check is OK, and the status is 0."""
    async with middlebox(port) as box:
        told = await _doctor(person, box.url, "--speed")
    assert (told.ended.status, told.amiss()) == (0, []), told.ended
    assert re.fullmatch(r"kdispatch/\S+, protocol 1, id [0-9a-f]{32}", told.by_check["relay"]["text"])
    assert re.match(r"at least [0-9.]+ Mbit/s each way", told.by_check["speed"]["text"])


async def test_a_box_that_strips_upgrades(person: Person, port: int) -> None:
    """If the relay answers but did not get the Upgrade header, doctor says that something on the way removes it."""
    async with middlebox(port, Rules(strips=True)) as box:
        told = await _doctor(person, box.url)
    finding = told.by_check["upgrade"]
    assert (told.ended.status, told.amiss(), finding["hop"]) == (1, ["upgrade"], "you -> relay"), told.ended
    assert "without its Upgrade header: something on the way takes that out" in finding["text"]
    assert f"Ask the network's owner to let WebSockets to 127.0.0.1:{box.port} pass" in finding["hint"]
    assert told.level("buffering") == "skip"


async def test_a_box_that_refuses_upgrades(person: Person, port: int) -> None:
    """If plain requests pass and an upgrade gets 400, doctor shows the name of the server that answers."""
    async with middlebox(port, Rules(refuses=True)) as box:
        told = await _doctor(person, box.url)
    finding = told.by_check["upgrade"]
    assert (told.ended.status, told.amiss(), finding["hop"]) == (1, ["upgrade"], "you -> relay"), told.ended
    assert "answers the upgrade by 400 and text/html in the relay's place (server: gateway)" in finding["text"]
    assert finding["hint"].startswith("Ask the network's owner to let WebSockets")


async def test_a_box_that_gathers_bytes(person: Person, port: int) -> None:
    """Doctor detects that a box holds small messages back, and says how many KiB release them."""
    async with middlebox(port, Rules(buffers=64 * KIB)) as box:
        told = await _doctor(person, box.url)
    finding = told.by_check["buffering"]
    assert (told.ended.status, told.amiss(), finding["hop"]) == (1, ["buffering"], "you -> relay"), told.ended
    match = re.search(r"came only after (\d+) KiB had been sent, together with (\d+) KiB", finding["text"])
    assert match is not None and 64 <= int(match[1]) < 512 and 60 <= int(match[2]) < 256, finding["text"]
    assert told.level("round trip") == "skip"


@pytest.mark.parametrize("seconds", sizes(small=1.0, full=20.0))
async def test_a_box_that_cuts_the_silent(person: Person, port: int, seconds: float) -> None:
    """Doctor measures the silence after which sessions are cut, and distinguishes it from their age."""
    async with middlebox(port, Rules(idle=seconds)) as box:
        told = await _doctor(person, box.url, "--idle")
    finding = told.by_check["idle"]
    assert (told.ended.status, told.amiss(), finding["hop"]) == (7, ["idle"], "you -> relay"), told.ended
    assert finding["text"].startswith(f"Connections are cut after {seconds:.0f} s of silence;")


@pytest.mark.parametrize("seconds", sizes(small=2.0, full=30.0))
async def test_a_box_that_cuts_the_old(person: Person, port: int, seconds: float) -> None:
    """If a session that is never silent is cut, doctor reports a limit on its age."""
    async with middlebox(port, Rules(life=seconds)) as box:
        told = await _doctor(person, box.url, "--idle")
    finding = told.by_check["idle"]
    assert (told.ended.status, told.amiss(), finding["hop"]) == (7, ["idle"], "you -> relay"), told.ended
    assert finding["text"].startswith(f"Every connection is cut after about {seconds:.0f} s, silent or busy.")


async def test_a_box_that_opens_tls(person: Person, port: int, tmp_path: Path) -> None:
    """Doctor shows an issuer that this machine does not trust; with its CA all checks pass and still show it."""
    interception = await asyncio.to_thread(Interception, tmp_path)
    async with middlebox(port, opens=interception) as box:
        told = await _doctor(person, box.url)
        finding = told.by_check["tls"]
        assert (told.ended.status, told.amiss(), finding["code"]) == (1, ["tls"], "tls_unknown_ca"), told.ended
        assert ISSUER in finding["text"] and "--ca-file" in finding["hint"]
        assert told.level("clock") == "ok"  # from the untrusted server's answer: the check sends no secret
        told = await _doctor(person, box.url, SSL_CERT_FILE=str(interception.ca_file))
        assert (told.ended.status, told.amiss()) == (0, []), told.ended
        assert ISSUER in told.by_check["tls"]["text"]
        box.rules = Rules(strips=True)
        told = await _doctor(person, box.url, SSL_CERT_FILE=str(interception.ca_file))
        assert ISSUER in told.by_check["upgrade"]["text"]  # a box that intercepts TLS can also remove headers


async def test_no_secret_leaves(person: Person, shared_relay: Relay) -> None:
    """Neither doctor's output nor its bundle contains the stored token, a given one, or a proxy's password."""
    stored = (await person.runs("sign-up", "doctors-friend", "--relay", shared_relay.url, "--quiet")).out.strip()
    given, password = format_token("svc", b"\x07" * 32), "hunter2%2F9"
    async with service(ScriptedProxy(ESTABLISHED, through=True)) as proxy:
        url = f"http://ann:{password}@127.0.0.1:{proxy.port}"
        environment = {"KDISPATCH_TOKEN": given, "HTTPS_PROXY": url, "KDISPATCH_PROXY": url}
        ended = await person.runs("doctor", "--json", "--bundle", "b.zip", environment=environment)
    with zipfile.ZipFile(person.home / "b.zip") as bundle:
        written = "".join(bundle.read(name).decode() for name in bundle.namelist())
    told = Told.of(ended)
    assert (told.amiss(), told.by_check["token"]["code"]) == (["token"], "token_refused"), ended
    for secret in (stored, given, password, "hunter2/9"):
        assert secret not in ended.out + ended.err + written
    assert f"http://[redacted]@127.0.0.1:{proxy.port}" in written
