"""Who an agent is: the ids, keys and proofs that come of its secrets, and the protocol's versions."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

__all__ = ["VERSIONS", "host_id", "process_id", "proof", "stream_key"]

#: Protocol versions this code speaks.
VERSIONS: Final = (1,)


def process_id(secret: bytes) -> str:
    """What others see of a process: the first 16 bytes of its secret's SHA-256, in hex."""
    return hashlib.sha256(secret).digest()[:16].hex()


def host_id(process: str, service: str) -> str:
    """The id of a process as a host of one service: the same after every reconnect."""
    return hashlib.sha256(f"kdispatch host {process} {service}".encode()).digest()[:16].hex()


def stream_key(secret: bytes, process: str) -> bytes:
    """The key between a client, which made the stream's 32 byte secret, and the host process it is bound to."""
    return hmac.digest(secret, bytes.fromhex(process), "sha256")


def proof(key: bytes, uuid: str, role: str, attach: int) -> str:
    """What shows that an ATTACH comes from the stream's own end, and is none that was used before."""
    return hmac.new(key, f"{uuid} {role} {attach}".encode(), hashlib.sha256).hexdigest()
