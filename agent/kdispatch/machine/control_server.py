"""The agent's side of its control socket: few, small and bounded answers, beside the agent's main work."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from kdispatch.machine.control import REQUEST_BYTES
from kdispatch_protocol.console import SCHEMA

__all__ = ["Answer", "ControlServer"]

#: Answers one request.
Answer = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]

#: Clients send and read at once, and commands wait no longer than this either.
_SECONDS: Final = 5.0
#: Parallel connections. Any user of this machine can connect to a port, but gets no answer without the token.
_MOST: Final = 16


class ControlServer:
    """Answers requests with the right token on a bound socket, by their ``command``. Use it with ``async with``."""

    def __init__(self, sock: socket.socket, token: str, answers: Mapping[str, Answer]) -> None:
        self._socket = sock
        self._token = token
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        start: Any = asyncio.start_server if self._socket.family == socket.AF_INET else asyncio.start_unix_server
        self._server = await start(self._serve, sock=self._socket, limit=REQUEST_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._serving) >= _MOST:
            writer.transport.abort()
            return
        self._serving.add(task)
        ended = False
        try:
            async with asyncio.timeout(_SECONDS):
                answer = await self._answer(reader)
                writer.write(json.dumps({"schema": SCHEMA, **answer}).encode() + b"\n")
                await writer.drain()
                writer.close()
                await writer.wait_closed()
                ended = True
        except (OSError, EOFError):  # includes TimeoutError: the client left, or is too slow
            pass
        finally:
            self._serving.discard(task)
            if not ended:
                with contextlib.suppress(AttributeError):  # raised by CPython 3.12.1 for a transport that has ended
                    writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            request = json.loads(await reader.readuntil(b"\n"))
        except (ValueError, RecursionError, asyncio.LimitOverrunError):
            return _refused("bad_request")
        if not isinstance(request, dict):
            return _refused("bad_request")
        shown = request.get("token")
        if not isinstance(shown, str) or not hmac.compare_digest(shown.encode(errors="replace"), self._token.encode()):
            return _refused("not_permitted")
        answer, until = self._answers.get(str(request.get("command"))), request.get("until")
        if answer is None or not isinstance(until, float):
            return _refused("bad_request")
        if time.monotonic() > until:  # the machine's clock, the same for all processes
            raise TimeoutError
        return await answer(request)


def _refused(code: str) -> dict[str, Any]:
    return {"error": {"code": code}}
