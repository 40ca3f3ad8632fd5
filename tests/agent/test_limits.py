"""Agents at a limit of their machine pause, report it once, and blame neither the service nor the relay."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kdispatch.host import LocalPort
from kdispatch.local import port as local_port
from kdispatch.local.accept import Acceptor
from kdispatch.local.dial import Target
from kdispatch.network.answers import connection_error
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import SetupError
from kdispatch_protocol.process.descriptors import is_reserved, raise_limit


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def isEnabledFor(self, level: int) -> bool:
        return True

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(event)

    debug = warning = info


@contextmanager
def few(left: int) -> Iterator[None]:
    """This process may open this many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        most = probe.fileno() + left
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener.setblocking(False)
    return listener


async def _called(listener: socket.socket, count: int, stack: ExitStack) -> list[socket.socket]:
    """This many programs connect, from outside: their sockets are not counted."""
    made = []
    for _ in range(count):
        sock = stack.enter_context(socket.socket())
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        made.append(sock)
    return made


async def _until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def test_accepting_pauses_at_the_limit() -> None:
    """With few descriptors left connections wait in the kernel; one line reports it, and one that it is over."""
    log, taken = Log(), list[socket.socket]()
    with ExitStack() as stack, _listening() as listener:
        await _called(listener, 30, stack)
        with few(25):
            acceptor = Acceptor(listener, taken.append, log)
            await asyncio.sleep(0.6)
            there = len(taken)
            assert 0 < there < 15  # the last ones are reserved for other things
            with socket.socket():
                pass

            def all_were_taken() -> bool:
                for sock in taken:
                    sock.close()
                return len(taken) == 30 and len(log.lines) > 1

            await _until(all_were_taken)
        acceptor.close()
    waits, again = log.lines
    assert "wait: Too many open files" in waits and again.endswith("are taken again.")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_accepting_pauses_where_the_system_refuses(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """An accept that the system refuses is repeated after a pause, and reported once; the loop does not spin."""
    log, taken, tries = Log(), list[socket.socket](), 0

    class Refusing(socket.socket):
        def accept(self) -> Any:
            nonlocal tries
            tries += 1
            if tries <= 3:
                raise OSError(number, os.strerror(number))
            return super().accept()

    with ExitStack() as stack, Refusing() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        acceptor = Acceptor(listener, taken.append, log)
        await _called(listener, 1, stack)
        await _until(lambda: taken)
        acceptor.close()
        taken[0].close()
    assert tries <= 6 and len(log.lines) == 2


async def test_dialing_keeps_the_last_descriptors() -> None:
    """A dial to the service takes none of the last descriptors, because a new session with the relay needs one."""
    with _listening() as listener:
        target = Target(*listener.getsockname())
        with few(4), pytest.raises(OSError, match="Too many open files") as caught:
            target.begin()
        assert caught.value.errno == errno.EMFILE
        target.begin().close()


async def test_a_port_that_cannot_be_looked_at() -> None:
    """Without a descriptor for the kernel's table, and for a connection, the state of the port is unknown."""
    with _listening() as listener:
        address, port = listener.getsockname()
        asyncio.get_running_loop().run_in_executor(None, int)  # its thread starts while there is room
        with few(0), pytest.raises(OSError, match="Too many open files"):
            await local_port.is_open(address, port + 1, 1.0)
        assert await local_port.is_open(address, port, 1.0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EPERM])
async def test_the_service_is_not_blamed(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """An open that this machine cannot serve is refused as busy, logged once, and not counted against the service."""

    def fail(_target: Target) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Target, "begin", fail)
    refused: list[tuple[str, str]] = []

    class Driver:
        def refuse(self, stream: object, code: str, text: str) -> None:
            refused.append((code, text))

    class Stream:
        ended = False

    class Host:
        log = Log()

    port = LocalPort("127.0.0.1", 9)
    port.host = host = Host()  # type: ignore[assignment]  # the part of it that counts here
    for _ in range(5):
        port(Driver(), Stream())  # type: ignore[arg-type]  # likewise
    assert {code for code, _ in refused} == {"busy"} and os.strerror(number) in refused[0][1]
    assert port._failures == 0 and not port._look_now.is_set()
    assert len(host.log.lines) == 1 and "stays offered" in host.log.lines[0]


async def test_a_name_that_cannot_be_resolved() -> None:
    """An address whose name cannot be resolved does not count as a closed port."""
    with pytest.raises(SetupError, match="the name "):
        await LocalPort("no-such-name.invalid", 80).check()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_the_relay_is_not_blamed(number: int) -> None:
    """Without a descriptor for a connection to the relay, the error says that the limit is on this machine."""
    error = connection_error(RelayUrl.parse("https://relay.example"), OSError(number, os.strerror(number)))
    assert isinstance(error, SetupError) and "was not asked" in error.text and "ulimit -n" in error.hint


def test_the_limit_is_raised() -> None:
    """The soft limit is raised to the hard one, and the reserve lies below it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        assert is_reserved(241) and not is_reserved(239)
        assert raise_limit() == before[1] or before[1] == resource.RLIM_INFINITY
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
