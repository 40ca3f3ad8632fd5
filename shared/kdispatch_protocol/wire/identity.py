"""Identity of an agent: the ids, keys and proofs derived from its secrets, and the protocol versions."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

__all__ = ["VERSIONS", "host_id", "process_id", "proof", "stream_key"]

#: Protocol versions this code speaks.
VERSIONS: Final = (1,)


def process_id(secret: bytes) -> str:
    """The public id of a process: the first 16 bytes of its secret's SHA-256, in hex."""
    return hashlib.sha256(secret).digest()[:16].hex()


def host_id(process: str, service: str) -> str:
    """The id of a process as a host of one service. It is the same after every reconnect."""
    return hashlib.sha256(f"kdispatch host {process} {service}".encode()).digest()[:16].hex()


def stream_key(secret: bytes, process: str) -> bytes:
    """The key shared by a client, which made the stream's 32 byte secret, and its host process."""
    return hmac.digest(secret, bytes.fromhex(process), "sha256")


def proof(key: bytes, uuid: str, role: str, attach: int) -> str:
    """Proof that an ATTACH comes from the stream's own end and is not a replay."""
    return hmac.new(key, f"{uuid} {role} {attach}".encode(), hashlib.sha256).hexdigest()
