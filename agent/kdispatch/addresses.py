"""How local addresses are written."""

from __future__ import annotations

__all__ = ["bare", "place"]


def bare(address: str) -> str:
    """An address without the brackets that belong before a port: ``[::1]`` is ``::1``."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def place(address: str, port: int) -> str:
    """Address and port as they are written together."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
