"""Two local programs, with the two agents between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kdispatch.local.pipe import Pipe
from tests.net.tcp import Tcp

__all__ = ["Connect", "Ends"]


@dataclass
class Ends:
    """Two local programs, the pipes that connect them, and the agents' sockets."""

    client: Tcp
    service: Tcp
    client_pipe: Pipe
    host_pipe: Pipe


Connect = Callable[[], Awaitable[Ends]]
