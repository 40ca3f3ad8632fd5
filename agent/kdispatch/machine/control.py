"""An agent's control socket: its address, and requests to it.

It is a unix socket beside the agent's record, for its owner only. If that is
not possible (on Windows, or with a directory name that is too long), it is a
port of the loopback address. In both cases a request must contain the token from
the record, a file of mode 0600. The request is one line of JSON, the answer
another, and then the connection is closed.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from kdispatch.machine.operating_system import HERE

__all__ = ["ANSWER_BYTES", "REQUEST_BYTES", "Controlled", "ask", "bind"]

REQUEST_BYTES: Final = 4096  #: a token and a word; a larger request is invalid
#: A status with the maximum of listed streams takes a tenth of this.
ANSWER_BYTES: Final = 4 * 1024 * 1024

_LOOPBACK: Final = "127.0.0.1"
_READ_BYTES: Final = 256 * 1024


class Controlled(Protocol):
    """The part of an agent's record that is needed to ask the agent."""

    @property
    def id(self) -> str:
        """The agent's id."""

    @property
    def control(self) -> str | None:
        """A path, or ``ADDRESS:PORT``; ``None`` if the agent has no control socket."""

    @property
    def control_token(self) -> str | None:
        """The token for a request."""


def bind(path: Path) -> tuple[socket.socket, str]:
    """Bind a socket that does not listen yet; returns it with its address, which is ``path`` if possible.

    Raises ``OSError`` if no socket is possible. The caller removes the file at the end.
    """
    with contextlib.suppress(OSError):  # the path is too long, or its file system has no sockets
        sock = HERE.bind_private(path)
        if sock is not None:
            return sock, str(path)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind((_LOOPBACK, 0))
    except BaseException:
        sock.close()
        raise
    return sock, f"{_LOOPBACK}:{sock.getsockname()[1]}"


def ask(agents: Sequence[Controlled], seconds: float, **request: Any) -> dict[str, dict[str, Any]]:
    """Send all agents the same request in parallel; returns the answers that arrived in time, by agent id.

    An agent that reads the request later ignores it, because the caller would not learn of its effect.
    """
    deadline = time.monotonic() + seconds
    request["until"] = deadline
    said: dict[str, dict[str, Any]] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for agent in agents:
            with contextlib.suppress(OSError):
                question = _Question(agent, request)
                stack.enter_context(question.socket)
                selector.register(question.socket, selectors.EVENT_WRITE, question)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                question = key.data
                try:
                    wants = question.go_on()
                except OSError:
                    wants = 0
                if wants:
                    selector.modify(question.socket, wants, question)
                else:
                    selector.unregister(question.socket)
                    if answer := question.answer():
                        said[question.agent.id] = answer
    return said


class _Question:
    """One pending request."""

    def __init__(self, agent: Controlled, request: Mapping[str, Any]) -> None:
        self.agent = agent
        self._line = json.dumps({"token": agent.control_token, **request}).encode() + b"\n"
        self._received = bytearray()
        self._ended = False
        self.socket = _connect(agent.control)

    def go_on(self) -> int:
        """Send or receive what is possible now; returns the event to wait for, or 0 when done. Raises ``OSError``."""
        if self._line:
            self._line = self._line[self.socket.send(self._line) :]
            return selectors.EVENT_WRITE if self._line else selectors.EVENT_READ
        data = self.socket.recv(_READ_BYTES)
        self._received += data
        self._ended = not data
        return 0 if self._ended or len(self._received) > ANSWER_BYTES else selectors.EVENT_READ

    def answer(self) -> dict[str, Any] | None:
        """The answer, if it is complete."""
        with contextlib.suppress(ValueError):
            answer = json.loads(self._received) if self._ended else None
            return answer if isinstance(answer, dict) else None
        return None


def _connect(address: str | None) -> socket.socket:
    """Start to connect; raises ``OSError``, also if a stopped agent has a full backlog."""
    if address is None:
        raise FileNotFoundError
    host, _, port = address.rpartition(":")
    is_port = host == _LOOPBACK
    family = socket.AF_INET if is_port else HERE.unix
    if family is None:
        raise FileNotFoundError  # such an address is of another system's agent, or damaged
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        with contextlib.suppress(InterruptedError):
            try:
                sock.connect((host, int(port)) if is_port else address)
            except BlockingIOError:
                if not is_port:  # a unix socket never connects later
                    raise
    except BaseException:
        sock.close()
        raise
    return sock
