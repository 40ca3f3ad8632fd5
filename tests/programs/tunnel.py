"""Common parts: a tunnel to a server's port, free ports, and files to send."""

from __future__ import annotations

import hashlib
import random
import socket
from pathlib import Path
from typing import Final

from tests.net.harness import MIB, Network, Process

__all__ = ["KB", "MB", "digest", "free_port", "random_file", "succeeds", "tunnel"]

KB: Final = 1000
MB: Final = 1000 * KB


async def tunnel(network: Network, port: int) -> int:
    """Offer the port with a host agent and connect a client agent; returns the client's port."""
    name = await network.service()
    await network.host(name, port)
    _, reached_by = await network.connect(name)
    return reached_by


async def succeeds(process: Process, wait: float = 60.0) -> bytes:
    """Wait for the program's end; fail unless its status is 0; return its output."""
    status = await process.ended(wait)
    assert status == 0, f"{process.name} ended with {status}:\n{process.text[-2000:]}"
    return process.out


def free_port() -> int:
    """Return a port that was free a moment ago, for servers that do not accept port 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def random_file(folder: Path, size: int, name: str = "") -> Path:
    """Create an incompressible file, the same for the same size and name."""
    file = folder / (name or f"given-{size}")
    choice = random.Random(f"{size} {name}")
    with file.open("wb") as out:
        for start in range(0, size, MIB):
            out.write(choice.randbytes(min(MIB, size - start)))
    return file


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
