"""Whether a port is open: the kernel's table gives the same answer as connecting would."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from kdispatch.local import port as local_port

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /proc/net/tcp")


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port without a listener, kept from others by a bound socket at its own address."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.9", 0))
        yield kept.getsockname()[1]


def _listen(address: str, port: int, *, both: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family is socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        pytest.skip(f"this machine does not let a test listen on {address}: {error.strerror}")
    listener.listen()
    return listener


@pytest.mark.parametrize(
    ("bound", "asked", "is_there"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.2", "127.0.0.2", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.2", False),
        ("::1", "::1", True),
        ("::1", "localhost", True),
        ("::1", "127.0.0.1", False),
        ("127.0.0.1", "::1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::ffff:127.0.0.2", "127.0.0.1", False),
    ],
)
async def test_listener_at_one_address(bound: str, asked: str, is_there: bool, free_port: int) -> None:
    """A listener counts only for the address that it is bound to, in any form that the kernel writes."""
    with _listen(bound, free_port, both="ffff" in bound):
        assert await local_port.look(asked, free_port) is is_there
        assert await local_port.is_open(asked, free_port, 1.0) is is_there
    assert await local_port.look(asked, free_port) is False
    assert await local_port.is_open(asked, free_port, 1.0) is False


@pytest.mark.parametrize(
    ("bound", "asked"), [("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::", "127.0.0.1"), ("::", "::1")]
)
async def test_listener_everywhere(bound: str, asked: str) -> None:
    """A listener on all addresses counts for each of them."""
    with _listen(bound, 0, both=True) as listener:
        port = listener.getsockname()[1]
        assert await local_port.look(asked, port) is True
        assert await local_port.is_open(asked, port, 1.0)


async def test_connection_is_no_listener() -> None:
    """A connection's own port does not count as listening."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert await local_port.look("127.0.0.1", client.getsockname()[1]) is False


@pytest.mark.parametrize("address", ["192.0.2.1", "example.org", "2001:db8::1"])
def test_address_elsewhere(address: str) -> None:
    """The kernel's table says nothing about other machines."""
    assert local_port.looks_open(address, 22) is None


async def test_look_disturbs_nobody() -> None:
    """The check does not connect to a listener that the table shows."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert await local_port.is_open("127.0.0.1", listener.getsockname()[1], 1.0)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
