"""The proxy on the way to a relay."""

from __future__ import annotations

import sys
import traceback
import urllib.request

import pytest

from kdispatch.machine.operating_system import Windows
from kdispatch.network.proxy import Proxy, find_proxy
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import SetupError

RELAY = RelayUrl.parse("https://relay.example.org")
PLAIN = RelayUrl.parse("http://relay.example.org", insecure_plaintext=True)


@pytest.mark.parametrize(
    ("text", "shown", "user", "password"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128", None, None),
        ("proxy.example:3128", "http://proxy.example:3128", None, None),
        ("me:secret@Proxy.example/", "http://proxy.example:80", "me", "secret"),
        ("http://me:p%40ss%3Aw%C3%B6rd@[fd00::1]:8080", "http://[fd00::1]:8080", "me", "p@ss:wörd"),
        ("HTTP://EXAMPLE%5Cme:a:b@proxy.example.", "http://proxy.example:80", "EXAMPLE\\me", "a:b"),
        ("http://me:a@b@proxy.example", "http://proxy.example:80", "me", "a@b"),
        ("http://me@proxy.example", "http://proxy.example:80", "me", ""),
        ("socks5://127.0.0.1", "socks5://127.0.0.1:1080", None, None),
        ("socks5h://me:secret@127.0.0.1:9", "socks5://127.0.0.1:9", "me", "secret"),
        ("socks://127.0.0.1", "socks5://127.0.0.1:1080", None, None),
    ],
)
def test_addresses(text: str, shown: str, user: str | None, password: str | None) -> None:
    """Addresses are accepted in their usual forms, and shown without name and password."""
    proxy = Proxy.parse(text, "HTTPS_PROXY")
    assert (str(proxy), proxy.user, proxy.password, proxy.source) == (shown, user, password, "HTTPS_PROXY")
    assert not password or password not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:secret@proxy.example",
        "socks4://me:secret@proxy.example",
        "secret://proxy.example",
        "http://",
        "http://me:secret@",
        "http://me:sec/ret@proxy.example",
        "http://me:secret@proxy.example/path",
        "http://me:secret@proxy.example?query",
        "http://me:secret@proxy.example:0",
        "http://me:secret@proxy.example:70000",
        "http://me:secret@proxy.example:port",
        "http://me:secret@a..b",
        "http://me:secret@pröxy.example",
        "http://me:secret%0d%0aX@proxy.example",
        "http://me:secret%ff@proxy.example",
        "socks5://me:secret%C3%B6@proxy.example",
        "socks5://me@proxy.example",
        f"socks5://me:secret{'x' * 250}@proxy.example",
    ],
)
def test_unusable_addresses(text: str) -> None:
    """An invalid address is refused, with its source and none of its content."""
    with pytest.raises(SetupError) as raised:
        Proxy.parse(text, "HTTPS_PROXY")
    error = raised.value
    assert error.code == "bad_request"
    assert "HTTPS_PROXY" in error.text
    assert "HTTPS_PROXY" in error.hint
    for part in ("secret", "ret@", "me:"):
        assert part not in error.text + error.hint + repr(error) + "".join(traceback.format_exception_only(error))


@pytest.mark.parametrize(
    ("relay", "environment", "source"),
    [
        (RELAY, {}, None),
        (RELAY, {"HTTPS_PROXY": "a"}, "HTTPS_PROXY"),
        (RELAY, {"https_proxy": "a", "HTTPS_PROXY": "b"}, "https_proxy"),
        (RELAY, {"HTTPS_PROXY": " ", "ALL_PROXY": "a"}, "ALL_PROXY"),
        (RELAY, {"HTTPS_PROXY": "a", "ALL_PROXY": "b"}, "HTTPS_PROXY"),
        (RELAY, {"http_proxy": "a"}, None),
        (PLAIN, {"http_proxy": "a"}, "http_proxy"),
        (PLAIN, {"HTTP_PROXY": "a"}, None),
        (PLAIN, {"HTTPS_PROXY": "a"}, None),
        (PLAIN, {"all_proxy": "a"}, "all_proxy"),
    ],
)
def test_environment(relay: RelayUrl, environment: dict[str, str], source: str | None) -> None:
    """The environment variables count as for curl, and HTTP_PROXY is ignored."""
    found = find_proxy(relay, environment=environment)
    assert (found and found.source) == source


def test_settings_go_first() -> None:
    """--proxy takes precedence over the environment and its exceptions, and --no-proxy over all."""
    environment = {"HTTPS_PROXY": "other.example", "NO_PROXY": "*"}
    found = find_proxy(RELAY, proxy="http://proxy.example", environment=environment)
    assert found == Proxy("http", "proxy.example", 80, None, None, "--proxy")
    assert find_proxy(RELAY, no_proxy=True, environment={"HTTPS_PROXY": "other.example"}) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_loopback_goes_direct(host: str) -> None:
    """A relay on loopback is reached directly whatever the environment says, unless --proxy is given."""
    relay = RelayUrl.parse(f"https://{host}:8443")
    assert find_proxy(relay, environment={"HTTPS_PROXY": "a", "ALL_PROXY": "b"}) is None
    assert find_proxy(relay, proxy="proxy.example", environment={}) is not None


@pytest.mark.parametrize(
    ("url", "entries", "excepted"),
    [
        ("https://relay.example.org", "*", True),
        ("https://relay.example.org", "relay.example.org", True),
        ("https://relay.example.org", "a.example, example.org", True),
        ("https://relay.example.org", ".example.org", True),
        ("https://relay.example.org", "*.example.org", True),
        ("https://relay.example.org", "Example.ORG.", True),
        ("https://example.org", ".example.org", True),
        ("https://relay.example.org", "a.example b.example\trelay.example.org", True),
        ("https://relay.example.org", "relay.example.org:443", True),
        ("https://relay.example.org", "relay.example.org:8443", False),
        ("https://relay.example.org", "ample.org", False),
        ("https://relay.example.org", "relay.example", False),
        ("https://relay.example.org", ",,", False),
        ("https://relay.example.org", ".", False),
        ("https://10.1.2.3", "10.1.2.3", True),
        ("https://10.1.2.3", "10.0.0.0/8", True),
        ("https://10.1.2.3", "10.1.2.0/255.255.255.0", True),
        ("https://10.1.2.3", "10.1.2.3:443", True),
        ("https://10.1.2.3", "10.1.2.3:80", False),
        ("https://10.1.2.3", "192.168.0.0/16", False),
        ("https://10.1.2.3", "2.3", False),
        ("https://10.1.2.3", "fd00::/8", False),
        ("https://[fd00::1]", "fd00::/8", True),
        ("https://[fd00::1]", "fd00:0::1", True),
        ("https://[fd00::1]", "[fd00::1]:443", True),
        ("https://[fd00::1]", "[fd00:0::1]", True),
        ("https://[fd00::1]", "[fd00::1]:80", False),
    ],
)
def test_exceptions(url: str, entries: str, excepted: bool) -> None:
    """NO_PROXY accepts names with all their subdomains, addresses, networks, and a port if given."""
    relay = RelayUrl.parse(url)
    for name in ("no_proxy", "NO_PROXY"):
        found = find_proxy(relay, environment={"HTTPS_PROXY": "proxy.example", name: entries})
        assert (found is None) == excepted


def test_settings_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the registry's proxy counts, except for the names excluded there."""
    monkeypatch.setattr(urllib.request, "proxy_bypass_registry", lambda host: host == "inside.example", raising=False)
    registry = {"https": "http://proxy.example:3128", "socks": "socks://proxy.example:1080"}
    monkeypatch.setattr(urllib.request, "getproxies_registry", lambda: registry, raising=False)
    monkeypatch.setattr("kdispatch.network.proxy.HERE", Windows())
    found = find_proxy(RELAY, environment={})
    assert (str(found), found and found.source) == ("http://proxy.example:3128", "the system's settings")
    assert str(find_proxy(PLAIN, environment={})) == "socks5://proxy.example:1080"
    assert find_proxy(RelayUrl.parse("https://inside.example"), environment={}) is None
    assert str(find_proxy(RELAY, environment={"https_proxy": "other.example"})) == "http://other.example:80"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has no such settings")
def test_settings_of_linux() -> None:
    """Linux has no proxy settings beside the environment."""
    assert find_proxy(RELAY, environment={}) is None
