"""What a person who follows the README sees in a terminal: kept in ``screens/``, reviewed by eye, compared here.

``KDISPATCH_WRITE_SCREENS=1`` writes the files again; review the difference before you commit it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.examples import Example, examples_of
from tests.first_minutes.person import Person
from tests.net.harness import needs
from tests.net.tcp import Tcp, echo, service
from tests.networks.middlebox import Rules, middlebox

_SCREENS: Final = Path(__file__).with_name("screens")
_SIZE: Final = ("-x", "110", "-y", "64")
# Patterns of text that differs between runs, and their replacements.
_CHANGING: Final = (
    (r"\b(adm|svc|cli|hst|inv)_[A-Za-z0-9_-]{51}", r"\1_TOKEN"),
    (r"\b[0-9a-f]{32}\b", "HOST_ID"),
    (r"\b[0-9a-f]{16}\b", "TOKEN_ID"),
    (r"\b[0-9a-f]{12}\b", "AGENT_ID"),
    (r"\b[0-9a-f]{8}\b(?=  open)", "STREAM_1"),
    (r"connected for \d+ s", "connected for N s"),
    (r"round trip \d+\.\d ms", "round trip N.N ms"),
    (r"for \d+ s at most", "for N s at most"),
    (r"  \d+ s +(?=HOST_ID)", "  N s  "),
    (r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)", "TIME"),
    (r"\d\d:\d\d:\d\d", "TIME"),
    (r"\b\d+(\.\d)? ms\b", "N ms"),
    (r"kdispatch/\d[^,]*, protocol 1, id HOST_ID", "kdispatch/VERSION, protocol 1, id RELAY_ID"),
    (r"\d+ open files a process, so about \d+", "N open files a process, so about N"),
)


class Terminal:
    """A separate tmux server, with one window at a time."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._socket = str(person.home / "tmux")

    async def tmux(self, *arguments: str) -> str:
        # Not through the event loop: uvloop leaves its pipe end open in the child, and tmux's server keeps it.
        command = ["tmux", "-S", self._socket, "-f", os.devnull, *arguments]
        environment = {**self._person.environment, "TERM": "xterm-256color"}
        ended = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    async def window(self, name: str, command: str, until: str) -> str:
        """Type a command into a new window; returns the screen once it contains ``until``."""
        await self._typed(name, command, until)
        return await self._at_rest(name)

    async def _typed(self, name: str, command: str, until: str) -> None:
        shell = f"cd {shlex.quote(str(self._person.home))} && PS1='$ ' exec sh"
        await self.tmux("new-session", "-d", "-s", name, *_SIZE, shell)
        await self._shows(name, "$ ", lambda screen: screen)  # text typed before the prompt would be echoed before it
        await self.tmux("send-keys", "-t", name, "-l", command)
        await self.tmux("send-keys", "-t", name, "Enter")
        await self._shows(name, until, lambda screen: screen.partition("\n")[2])

    async def key(self, name: str, key: str, until: str) -> str:
        """Press a key, such as ``C-c``; returns the screen once it contains ``until``."""
        await self.tmux("send-keys", "-t", name, key)
        await self._shows(name, until, lambda screen: screen)
        return await self._at_rest(name)

    async def moving(self, name: str, command: str, until: str) -> str:
        """Like :meth:`window`, for a command that keeps changing the screen."""
        await self._typed(name, command, until)
        return await self.tmux("capture-pane", "-p", "-J", "-t", name)

    async def _at_rest(self, name: str) -> str:
        """Return the screen once it no longer changes."""
        screen = ""
        while screen != (now := await self.tmux("capture-pane", "-p", "-J", "-t", name)):
            screen = now
            await asyncio.sleep(0.7)
        return screen

    async def _shows(self, name: str, text: str, part: Callable[[str], str]) -> None:
        deadline = time.monotonic() + 30
        while text not in part(screen := await self.tmux("capture-pane", "-p", "-J", "-t", name)):
            assert time.monotonic() < deadline, f"{name} never showed {text!r}:\n{screen}"
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End the server, and before that what runs in its windows: a relay outlives the SIGHUP of its terminal."""
        for shell in (await self.tmux("list-panes", "-a", "-F", "#{pane_pid}")).split():
            _kill_children(shell)
        await self.tmux("kill-server")


def _kill_children(process: str) -> None:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)


def _free_ports(count: int = 3) -> Iterator[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    yield from (one.getsockname()[1] for one in sockets)
    for one in sockets:
        one.close()


def _compare(name: str, screen: str, ports: dict[str, str], home: Path) -> None:
    for port, free in ports.items():
        screen = re.sub(rf"\b{free}\b", port, screen)
    screen = screen.replace(str(home), "~")
    for pattern, stands in _CHANGING:
        screen = re.sub(pattern, stands, screen)
    screen = "\n".join(line.rstrip() for line in screen.rstrip().splitlines()) + "\n"
    assert "\x1b" not in screen
    file = _SCREENS / f"{name}.txt"
    if os.environ.get("KDISPATCH_WRITE_SCREENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(screen)
    assert screen == file.read_text(), f"{name} looks different; KDISPATCH_WRITE_SCREENS=1 writes it anew"


def _commands() -> list[Example]:
    return [
        example
        for example in examples_of("README.md")
        if "kdispatch" in example.code and "\n" not in example.code.strip()
    ]


@pytest.mark.slow
@needs("tmux", "curl")
async def test_the_readme_in_a_terminal(tmp_path: Path) -> None:
    """The README's walk, a mistake and Ctrl-C look like the reviewed screens."""
    person = Person(tmp_path / "h")
    free = dict(zip(("8443", "8080", "9090"), map(str, _free_ports()), strict=True))
    person.environment["KDISPATCH_SERVE_LISTEN"] = f"127.0.0.1:{free['8443']}"
    person.environment["XDG_DATA_HOME"] = str(person.home)
    terminal = Terminal(person)
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", int(free["8080"]))

    async def shows(name: str, command: str, until: str) -> None:
        for port, chosen in free.items():
            command = command.replace(port, chosen)
        screen = await terminal.window(name, command, until)
        _compare(name, screen, free, person.home)

    try:
        for number, example in enumerate(_commands()):
            code = example.code.strip()
            await shows(f"readme-{number}", code, example.ready or "Next, where the service runs")
        await shows("hosts", "kdispatch service hosts ann/web", "STREAMS")
        await shows("list", "kdispatch service list", "LIVE HOSTS")
        await shows("mistake", "kdispatch agent connect ann/wbe --port 9191", "try:")
        await shows("typo", "kdispatch agnt connect ann/web", "try:")
        await shows("help", "kdispatch --help", "Example:")
        await shows("help-doctor", "kdispatch doctor --help", "Example:")
        await shows("help-connect", "kdispatch agent connect --help", "Example:")
        await shows("detach", "kdispatch agent connect ann/web --port 9192 --detach; echo status $?", "status 0")
        await shows("stop", "kdispatch agent stop ann/web; echo status $?", "status 0")
    finally:
        await person.runs("agent", "stop", "ann/web", "--now")
        await terminal.close()
        server.close()


@pytest.mark.slow
@needs("tmux")
async def test_status_and_drain_in_a_terminal(tmp_path: Path) -> None:
    """Status, with a connection and repainted, and both presses of Ctrl-C look like the reviewed screens."""
    person = Person(tmp_path / "h")
    free = dict(zip(("8443", "8080", "9090"), map(str, _free_ports()), strict=True))
    person.environment["KDISPATCH_SERVE_LISTEN"] = f"127.0.0.1:{free['8443']}"
    person.environment["XDG_DATA_HOME"] = str(person.home)
    terminal = Terminal(person)

    def same(name: str, screen: str) -> None:
        _compare(name, screen, free, person.home)

    async with service(echo, port=int(free["8080"])):
        try:
            await terminal.window("relay", "kdispatch relay serve", "listening on")
            await person.runs("sign-up", "ann", "--relay", f"http://127.0.0.1:{free['8443']}")
            await person.runs("service", "create", "web")
            await terminal.window("none", "kdispatch status", "No agent")
            host = f"kdispatch agent host ann/web --port {free['8080']}"
            await terminal.window("host", host, "is offered as")
            await terminal.window("client", f"kdispatch agent connect ann/web --port {free['9090']}", "reached")
            async with await Tcp.connect(int(free["9090"])) as tcp:
                await tcp.send(b"x" * 2500)
                await tcp.receive_exactly(2500)
                same("status", await terminal.window("status", "kdispatch status; echo status $?", "status 0"))
                watch = "kdispatch status --watch; echo status $?"
                same("status-watch", await terminal.moving("watch", watch, "CLIENT"))
                same("status-watched", await terminal.key("watch", "C-c", "status 0"))
                same("drain", await terminal.key("client", "C-c", "Draining"))
                same("drain-twice", await terminal.key("client", "C-c", "Ending at once"))
                screen = await terminal.key("host", "C-c", "Ended")
                same("drain-host", screen)
        finally:
            await person.runs("agent", "stop", "ann/web", "--now")
            await terminal.close()


@pytest.mark.slow
@needs("tmux")
async def test_doctor_in_a_terminal(tmp_path: Path) -> None:
    """Doctor's output on a good path, without a host, behind a box and without a relay looks as reviewed."""
    person = Person(tmp_path / "h")
    free = dict(zip(("8443", "8080", "9090"), map(str, _free_ports()), strict=True))
    person.environment["KDISPATCH_SERVE_LISTEN"] = f"127.0.0.1:{free['8443']}"
    person.environment["XDG_DATA_HOME"] = str(person.home)
    terminal = Terminal(person)

    async def shows(name: str, command: str) -> None:
        _compare(name, await terminal.window(name, f"{command}; echo status $?", "status "), free, person.home)

    async with service(echo, port=int(free["8080"])), middlebox(int(free["8443"]), Rules(strips=True)) as box:
        free["8444"] = str(box.port)
        try:
            await terminal.window("relay", "kdispatch relay serve", "listening on")
            await person.runs("sign-up", "ann", "--relay", f"http://127.0.0.1:{free['8443']}")
            await person.runs("service", "create", "web")
            await shows("doctor-no-host", "kdispatch doctor ann/web")
            await terminal.window("host", f"kdispatch agent host ann/web --port {free['8080']}", "is offered as")
            await shows("doctor", f"kdispatch doctor ann/web --port {free['8080']}")
            await shows("doctor-stripped", f"kdispatch doctor --relay http://127.0.0.1:{free['8444']}")
            await shows("doctor-no-relay", f"kdispatch doctor --relay https://127.0.0.1:{free['9090']} --bundle b.zip")
        finally:
            await terminal.close()


@pytest.mark.slow
@needs("tmux")
async def test_an_upgrade_in_a_terminal(tmp_path: Path) -> None:
    """During an upgrade, the output of old relay, new relay and agents looks like the reviewed screens."""
    person = Person(tmp_path / "h")
    free = dict(zip(("8443", "8080", "9090"), map(str, _free_ports()), strict=True))
    person.environment["KDISPATCH_SERVE_LISTEN"] = f"127.0.0.1:{free['8443']}"
    person.environment["XDG_DATA_HOME"] = str(person.home)
    terminal = Terminal(person)

    def same(name: str, screen: str) -> None:
        # The number of progress lines depends on timing.
        left = [line for line in screen.splitlines() if not line.endswith("are left.")]
        _compare(name, "\n".join(left), free, person.home)

    async with service(echo, port=int(free["8080"])):
        try:
            await terminal.moving("relay", "kdispatch relay serve; echo status $?", "listening on")
            await person.runs("sign-up", "ann", "--relay", f"http://127.0.0.1:{free['8443']}")
            await person.runs("service", "create", "web")
            host = f"kdispatch agent host ann/web --port {free['8080']}"
            await terminal.moving("host", host, "is offered as")
            await terminal.moving("client", f"kdispatch agent connect ann/web --port {free['9090']}", "reached")
            async with await Tcp.connect(int(free["9090"])) as tcp:
                await tcp.send(b"x")
                await tcp.receive_exactly(1)
                same("upgrade-refused", await terminal.window("no", "kdispatch relay serve", "try:"))
                await terminal.moving("next", "kdispatch relay serve --reuse-port", "listening on")
                same("upgrade", await terminal.key("relay", "C-c", "status 0"))
                await tcp.send(b"y")
                assert await tcp.receive_exactly(1) == b"y"
                same("upgrade-state", await terminal.window("state", "kdispatch relay state", "cuts"))
            same("upgrade-host", await terminal._at_rest("host"))
            same("upgrade-connect", await terminal._at_rest("client"))
        finally:
            await terminal.close()


@pytest.mark.slow
@needs("tmux")
async def test_access_in_a_terminal(tmp_path: Path) -> None:
    """Inviting, accepting, listing and revoking, right and wrong, look like the reviewed screens."""
    person = Person(tmp_path / "h")
    free = dict(zip(("8443", "8080", "9090"), map(str, _free_ports()), strict=True))
    person.environment["KDISPATCH_SERVE_LISTEN"] = f"127.0.0.1:{free['8443']}"
    person.environment["XDG_DATA_HOME"] = str(person.home)
    terminal = Terminal(person)
    guest = f"KDISPATCH_RELAY=http://127.0.0.1:{free['8443']} KDISPATCH_CONFIG_DIR=guest kdispatch"

    async def shows(name: str, command: str) -> str:
        screen = await terminal.window(name, f"{command}; echo status $?", "status ")
        _compare(name, screen, free, person.home)
        return screen

    async with service(echo, port=int(free["8080"])):
        try:
            await terminal.window("relay", "kdispatch relay serve", "listening on")
            await person.runs("sign-up", "ann", "--relay", f"http://127.0.0.1:{free['8443']}")
            await person.runs("service", "create", "web", "--access", "token")
            invited = await shows("invite", "kdispatch invite create web --for connect --name team")
            code = re.search(r"\binv_[A-Za-z0-9_-]{51}", invited)
            assert code is not None
            await shows("invite-accept", f"{guest} invite accept {code[0]}")
            await shows("audit", "kdispatch audit --service web")
            await asyncio.gather(
                shows("invite-spent", f"{guest} invite accept {code[0]}"),
                shows("invite-list", "kdispatch invite list web"),
                shows("pin-refused", f"{guest} agent connect ann/web --host 0123456789"),
                terminal.window("host", f"kdispatch agent host web --port {free['8080']}; echo status $?", "offered"),
            )
            client = f"{guest} agent connect ann/web --port {free['9090']}; echo status $?"
            await terminal.window("client", client, "reached")
            async with await Tcp.connect(int(free["9090"])) as tcp:
                await tcp.send(b"x")
                await tcp.receive_exactly(1)
                await shows("clients", "kdispatch service clients web")
                invite = (await person.runs("invite", "list", "web", "--quiet")).out.strip()
                await person.runs("invite", "revoke", "web", invite, "--tokens")
                await shows("rotate", "kdispatch service rotate web")
            for agent in ("client", "host"):
                await terminal._shows(agent, "status 4", lambda screen: screen.partition("\n")[2])
                _compare(f"revoked-{agent}", await terminal._at_rest(agent), free, person.home)
        finally:
            await terminal.close()
