"""Shows tokens that nobody has made to a relay, one after the other: python -m tests.net.bad_tokens PORT

For each line on standard input, a count and how many a second, it shows them, and then prints the statuses of the
answers with how often each came.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from collections import Counter

from kdispatch_protocol.tokens import SECRET_BYTES, format_token


def show(connection: socket.socket, count: int, rate: int) -> Counter[str]:
    """Ask with ``count`` tokens, ``rate`` of them a second; returns the statuses."""
    statuses: Counter[str] = Counter()
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        token = format_token("adm", secrets.token_bytes(SECRET_BYTES))
        head = f"GET /api/v1/whoami HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
        connection.sendall(head.encode())
        statuses[answer(connection)] += 1
    return statuses


def answer(connection: socket.socket) -> str:
    """Read one answer; returns its status."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head[9:12].decode()


if __name__ == "__main__":
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as relay:
        for line in sys.stdin:
            print(json.dumps(show(relay, *map(int, line.split()))), flush=True)
