"""kdispatch: reach a TCP service on a machine that can only make outgoing HTTPS connections.

reader, writer = await kdispatch.open_connection("ann/web")
server = await kdispatch.start_server(handle, "ann/web")
async with kdispatch.RestClient(token=token) as relay: print(await relay.services())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdispatch_protocol.errors import KdispatchError, StreamReset

if TYPE_CHECKING:
    from kdispatch.library import Connector, Server, open_connection, start_server
    from kdispatch.rest.client import RestClient

__all__ = [
    "Connector",
    "KdispatchError",
    "RestClient",
    "Server",
    "StreamReset",
    "open_connection",
    "start_server",
]


def __getattr__(name: str) -> Any:
    # On first use: `kdispatch --version` imports this package too and must not wait for an HTTP client.
    if name == "RestClient":
        from kdispatch.rest.client import RestClient  # noqa: PLC0415

        return RestClient
    if name in __all__:
        from kdispatch import library  # noqa: PLC0415

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
