"""An agent's control socket: where it is, and how a command asks there.

A unix socket beside the agent's record, for its owner only. Where there can be
none (Windows, or a directory whose name is too long for one) it is a port of
the loopback address. Either way a request has to show the token that is in the
record, a file of mode 0600. One line of JSON asks, one line answers, and the
connection is closed.
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

REQUEST_BYTES: Final = 4096  #: a token and a word; more is no request
#: A status with all the streams that it may list takes a tenth of this.
ANSWER_BYTES: Final = 4 * 1024 * 1024

_LOOPBACK: Final = "127.0.0.1"
_READ_BYTES: Final = 256 * 1024


class Controlled(Protocol):
    """The part of an agent's record by which it is asked."""

    @property
    def id(self) -> str:
        """The agent's."""

    @property
    def control(self) -> str | None:
        """A path, or ``ADDRESS:PORT``; nothing where the agent could have no socket."""

    @property
    def control_token(self) -> str | None:
        """What a request has to show."""


def bind(path: Path) -> tuple[socket.socket, str]:
    """A socket that is bound and does not listen yet, and its address: ``path`` where that can be.

    Raises ``OSError`` where there can be none at all. Whoever calls removes the file in the end.
    """
    with contextlib.suppress(OSError):  # the path is too long, or its file system knows no sockets
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
    """Ask agents the same, all at once; returns what those said that did in time, by their ids.

    One that comes to read the request later does nothing about it: nobody knows that it was heard.
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
    """One request that is under way."""

    def __init__(self, agent: Controlled, request: Mapping[str, Any]) -> None:
        self.agent = agent
        self._line = json.dumps({"token": agent.control_token, **request}).encode() + b"\n"
        self._received = bytearray()
        self._ended = False
        self.socket = _connect(agent.control)

    def go_on(self) -> int:
        """Do what can be done now; returns the event to wait for, 0 when it is over. Raises ``OSError``."""
        if self._line:
            self._line = self._line[self.socket.send(self._line) :]
            return selectors.EVENT_WRITE if self._line else selectors.EVENT_READ
        data = self.socket.recv(_READ_BYTES)
        self._received += data
        self._ended = not data
        return 0 if self._ended or len(self._received) > ANSWER_BYTES else selectors.EVENT_READ

    def answer(self) -> dict[str, Any] | None:
        """What it says, if it is there whole."""
        with contextlib.suppress(ValueError):
            answer = json.loads(self._received) if self._ended else None
            return answer if isinstance(answer, dict) else None
        return None


def _connect(address: str | None) -> socket.socket:
    """Begin to connect; raises ``OSError``, also where an agent that does not run on has its backlog full."""
    if address is None:
        raise FileNotFoundError
    host, _, port = address.rpartition(":")
    is_port = host == _LOOPBACK
    sock = socket.socket(socket.AF_INET if is_port else socket.AF_UNIX, socket.SOCK_STREAM)
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
