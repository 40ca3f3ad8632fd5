"""The source of a request, as far as it can be trusted."""

from __future__ import annotations

import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.sources import address_of, forwarded_source, group_of, networks

TRUSTED = networks("10.0.0.0/8, 192.0.2.1,2001:db8:1::/48")


@pytest.mark.parametrize(
    ("peer", "lists", "source"),
    [
        ("203.0.113.9", ["198.51.100.7"], "203.0.113.9"),
        ("203.0.113.9", ["10.0.0.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["127.0.0.1, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7, 10.1.1.1,192.0.2.1"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7, 203.0.113.9, 10.1.1.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.7", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("::ffff:10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("2001:db8:1::7", ["[2001:db8:2::1]:443"], "2001:db8:2::1"),
        ("10.0.0.1", ["198.51.100.7, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7, <script>, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7," + "10.0.0.2," * 10_000 + "10.0.0.2"], "10.0.0.2"),
        ("memory", ["198.51.100.7"], "memory"),
    ],
)
def test_source(peer: str, lists: list[str], source: str) -> None:
    """The source is the rightmost address that is not a trusted proxy's; entries left of it are ignored."""
    assert forwarded_source(peer, lists, TRUSTED) == source


def test_nobody_is_trusted() -> None:
    """Without a setting no header is trusted, not even from this machine."""
    assert forwarded_source("127.0.0.1", ["198.51.100.7"], networks("")) == "127.0.0.1"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_group(one: str, other: str, same: bool) -> None:
    """One source is an IPv4 address, or 64 bits of an IPv6 one."""
    assert (group_of(one) == group_of(other)) is same


@pytest.mark.parametrize("text", ["relay.example.org", "10.0.0.1/8", "10.0.0.0/33", "*"])
def test_what_is_no_network(text: str) -> None:
    """A setting that is neither an address nor a network is refused; so is one with host bits, which is ambiguous."""
    with pytest.raises(KdispatchError, match="trusted proxy") as caught:
        networks(text)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("text", "address"),
    [(" 192.0.2.1 ", "192.0.2.1"), ("192.0.2.1:80", "192.0.2.1"), ("[::1]:80", "::1"), ("[::1", "::1"), ("_x", None)],
)
def test_address(text: str, address: str | None) -> None:
    """Addresses of proxies are accepted with and without a port."""
    found = address_of(text)
    assert (found and str(found)) == address
