"""Shows invented tokens to a relay, one after the other: python -m tests.net.bad_tokens PORT

Each line on standard input has a count and a rate a second. The program sends that many tokens, then prints the
statuses of the answers with their counts.
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
    """Send ``count`` tokens, ``rate`` of them a second; returns the statuses."""
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
