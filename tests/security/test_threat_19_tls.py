"""Threat 19: TLS without verification."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings
from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.settings import RelaySettings
from tests.agent.cli.conftest import kdispatch, own_configuration, relay
from tests.agent.cli.fake_relay import FakeRelay, Shell, new_token
from tests.agent.cli.test_tls import relays

__all__ = ["kdispatch", "own_configuration", "relay", "relays"]


@pytest.mark.slow
async def test_a_relay_that_can_not_be_verified(relays: dict[str, FakeRelay], kdispatch: Shell, tmp_path: Path) -> None:
    """An unknown CA, a wrong host and an expired certificate end with 6 and the reason, before a token is sent."""
    token, ca = new_token("adm"), str(tmp_path / "ca.pem")
    relays["good"].handles[token] = "ann"

    async def whoami(name: str, **environment: str) -> tuple[int, str]:
        address = relays[name].url.replace("127.0.0.1", "localhost")
        ended = await kdispatch("whoami --quiet --relay", address, KDISPATCH_TOKEN=token, **environment)
        return ended.status, ended.out.strip() or ended.code

    told = await asyncio.gather(
        whoami("good", KDISPATCH_CA_FILE=ca),
        whoami("good"),
        whoami("expired", KDISPATCH_CA_FILE=ca),
        whoami("other", KDISPATCH_CA_FILE=ca),
    )
    assert list(told) == [(0, "ann"), (6, "tls_unknown_ca"), (6, "tls_expired"), (6, "tls_wrong_host")]
    assert [relays[name].seen for name in ("expired", "other")] == [[], []] and len(relays["good"].seen) == 1


@pytest.mark.parametrize(
    "url", ["http://relay.example.org", "http://192.0.2.1:8443", "http://[2001:db8::1]", "http://0.0.0.0"]
)
def test_plain_http_is_for_this_machine(url: str) -> None:
    """An agent sends nothing to another machine without TLS, except with an explicit option."""
    refused = ""
    try:
        RelayUrl.parse(url)
    except KdispatchError as error:
        refused = error.code
    assert refused == "plaintext_refused"
    assert not RelayUrl.parse(url, insecure_plaintext=True).secure


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "[::]:8443", "192.0.2.1:8443", "relay.example.org:8443"])
def test_a_relay_listens_in_the_clear_for_this_machine_only(listen: str) -> None:
    """A relay that other machines can reach refuses to start without TLS, except with an explicit option."""
    with pytest.raises(KdispatchError, match="plaintext_refused"):
        RelaySettings(listen=listen)


def test_nothing_turns_verification_off() -> None:
    """No setting of an agent turns verification off."""
    names = " ".join(Settings.__dataclass_fields__)
    assert not re.search(r"insecure(?!_plaintext)|verify|skip|no_tls|trust_all", names), names
