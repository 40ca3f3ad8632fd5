from __future__ import annotations

import pytest

from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.errors import KdispatchError


@pytest.mark.parametrize(
    ("text", "canonical", "tunnel"),
    [
        ("relay.example.org", "https://relay.example.org", "wss://relay.example.org/api/v1/tunnel"),
        ("relay.example.org:8443", "https://relay.example.org:8443", "wss://relay.example.org:8443/api/v1/tunnel"),
        (" HTTPS://Relay.Example.ORG.:443/ ", "https://relay.example.org", "wss://relay.example.org/api/v1/tunnel"),
        ("https://example.org/kd/a/", "https://example.org/kd/a", "wss://example.org/kd/a/api/v1/tunnel"),
        ("http://127.0.0.1:8443", "http://127.0.0.1:8443", "ws://127.0.0.1:8443/api/v1/tunnel"),
        ("http://localhost", "http://localhost", "ws://localhost/api/v1/tunnel"),
        ("http://[0:0::1]:9", "http://[::1]:9", "ws://[::1]:9/api/v1/tunnel"),
        ("https://[2001:DB8::1]", "https://[2001:db8::1]", "wss://[2001:db8::1]/api/v1/tunnel"),
    ],
)
def test_an_address_has_one_canonical_form(text: str, canonical: str, tunnel: str) -> None:
    """However an address is written, its text is canonical and its tunnel has the same location."""
    url = RelayUrl.parse(text)
    assert (str(url), url.tunnel) == (canonical, tunnel)
    assert url.rest("/whoami") == f"{canonical}/api/v1/whoami"
    assert RelayUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "ftp://example.org", "wss://example.org", "https://", "https://:443", "https:///path",
        "https://example.org:0", "https://example.org:65536", "https://example.org:https", "https://example.org/?",
        "https://example.org/?token=1", "https://example.org/#a", "https://exa mple.org", "https://exa\nmple.org",
        "https://example.org\\@evil.org", "https://bücher.example", "https://example.org/a/../b", "https://[::1",
        "https://example.org//b", "https://example.org/%2e%2e", "https://[fe80::1%25eth0]", "https://-a.org",
        "https://a..org", f"https://{'a' * 64}.org", "https://[::1]x/",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    """An address that programs could read differently is refused, instead of guessed."""
    with pytest.raises(KdispatchError) as caught:
        RelayUrl.parse(text)
    assert caught.value.code == "bad_relay_url"


@pytest.mark.parametrize("text", ["https://ann:s3cret@example.org", "s3cret@example.org", "http://s3cret@127.0.0.1"])
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    """The error for a password in the address does not show the password."""
    with pytest.raises(KdispatchError) as caught:
        RelayUrl.parse(text)
    assert caught.value.code == "bad_relay_url"
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["example.org", "127.evil.org", "localhost.evil.org", "10.0.0.1", "[2001:db8::1]"])
def test_plain_http_leaves_this_machine_only_when_asked(host: str) -> None:
    """Plain http is used for loopback only, unless insecure_plaintext is set."""
    with pytest.raises(KdispatchError) as caught:
        RelayUrl.parse(f"http://{host}")
    assert caught.value.code == "plaintext_refused"
    assert RelayUrl.parse(f"http://{host}", insecure_plaintext=True).secure is False
