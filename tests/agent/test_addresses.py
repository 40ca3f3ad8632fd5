"""The text form of addresses."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from kdispatch.addresses import place, written

_INDEX, _NAME = socket.if_nameindex()[0]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (("127.0.0.1", 80), "127.0.0.1"),
        (("::1", 80, 0, 0), "::1"),
        (("fe80::1", 80, 0, _INDEX), f"fe80::1%{_NAME}"),
        ((f"fe80::1%{_NAME}", 80, 0, _INDEX), f"fe80::1%{_NAME}"),
        (("fe80::1", 80, 0, 2**31 - 1), f"fe80::1%{2**31 - 1}"),
    ],
)
def test_link_local_addresses_keep_their_interface(address: tuple[Any, ...], host: str) -> None:
    """A socket's address is written in the form that other programs accept."""
    assert written(address) == host
    assert place(f"fe80::1%{_NAME}", 80) == f"[fe80::1%{_NAME}]:80"
