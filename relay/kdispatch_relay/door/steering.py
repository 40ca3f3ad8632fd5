"""Chooses which of several sockets that listen on one port gets the next connection (Linux).

Sockets with ``SO_REUSEPORT`` on one address form a group, numbered in the order in which they began to listen. When one
is closed, the last one takes its number. A BPF program of one instruction returns the number of the socket that gets
all new connections. A number outside the group means any socket, by a hash (socket(7), and ``reuseport_select_sock`` in
Linux's ``net/core/sock_reuseport.c``).
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

__all__ = ["MOST", "send_all_to"]

MOST: Final = 16  #: most sockets of one group that are tried; a relay that ends leaves the group within seconds

_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_RETURN: Final = 0x06  # BPF_RET | BPF_K: the result is the constant


def send_all_to(sock: socket.socket, number: int) -> bool:
    """Let the socket with this number in ``sock``'s group get all new connections; returns whether that worked."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN, 0, 0, number))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", 1, ctypes.addressof(program)))
    except OSError:
        return False
    return True
