"""The peers of the second implementation: a real relay, real agents, and a service behind them."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from kdispatch_relay.gate.gate import Gate
from kdispatch_relay.server import RunningRelay, running_relay
from kdispatch_relay.settings import RelaySettings
from tests.guards.environment import inherited

from .codec import WAIT, Session, Type, message

__all__ = ["MIB", "SERVICE", "WINDOW", "Line", "World", "agent_connect", "agent_host", "echo", "line", "refusal", "sha"]

SERVICE: Final = "ann/web"
WINDOW: Final = 64 * 1024
MIB: Final = bytes(range(256)) * 4096


class World:
    """A relay with an admin `ann` and her public service `ann/web`."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._running = AsyncExitStack()
        self.port = 0
        self.admin = ""
        self.token = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> RunningRelay:
        """Run the relay; a restart uses the same port and database."""
        settings = RelaySettings(listen=f"127.0.0.1:{self.port}", database=str(self._folder / "relay.db"))
        self._running = await self._stack.enter_async_context(AsyncExitStack())
        made = running_relay(settings, Gate)
        relay = await self._running.enter_async_context(made)
        self.port = relay.port
        return relay

    async def stop(self) -> None:
        """End the relay; it forgets everything outside its database."""
        await self._running.aclose()

    async def sign_up(self) -> None:
        async with aiohttp.ClientSession(self.url) as http:
            async with http.post("/api/v1/admins", json={"handle": "ann"}) as answer:
                self.admin = (await answer.json())["token"]
            bearer = {"Authorization": f"Bearer {self.admin}"}
            async with http.post("/api/v1/services", json={"name": "web", "pins": True}, headers=bearer) as answer:
                self.token = (await answer.json())["token"]

    async def session(self, secret: bytes | None = None) -> Session:
        return await Session.start("127.0.0.1", self.port, secret)

    async def get(self, path: str) -> Any:
        async with aiohttp.ClientSession() as http, http.get(self.url + path) as answer:
            return await answer.json()


class Line:
    """A proxy from agents to the relay. It counts their bytes, can hold the answers, and can cut all connections."""

    def __init__(self, to: int) -> None:
        self.url = ""
        self.said = 0  # bytes towards the relay
        self._to = to
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def hold(self) -> None:
        """Hold all answers from now on."""
        self._open.clear()

    def cut(self) -> None:
        """Cut all connections and drop held bytes; new connections pass."""
        for writer in self._writers:
            writer.transport.abort()
        self._open = asyncio.Event()
        self._open.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        may = self._open
        with suppress(OSError):
            back, out = await asyncio.open_connection("127.0.0.1", self._to)
            writers.append(out)
            self._writers.update(writers)
            tasks = [asyncio.create_task(self._say(reader, out)), asyncio.create_task(self._answer(back, writer, may))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for one in writers:
            self._writers.discard(one)
            one.transport.abort()

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
            self.said += len(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may: asyncio.Event) -> None:
        while data := await reader.read(65_536):
            await may.wait()
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def line(world: World) -> AsyncIterator[Line]:
    made = Line(world.port)
    server = await asyncio.start_server(made.carry, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made
        made.cut()


@asynccontextmanager
async def kdispatch(url: str, folder: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the installed program; the block's end terminates it by its pid."""
    environment = inherited()
    environment |= {"KDISPATCH_RELAY": url, "KDISPATCH_CONFIG_DIR": str(folder / "config")}
    program = Path(sys.executable).with_name("kdispatch")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdin=DEVNULL, stdout=PIPE, env=environment, cwd=folder
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(2):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def agent_host(world: World, folder: Path, port: int, *options: str, url: str = "") -> AsyncIterator[None]:
    """Run `agent host` for a local port; ``url`` is another address of the relay."""
    tokens = folder / "service.token"
    tokens.write_text(world.token)
    tokens.chmod(0o600)
    arguments = ("agent", "host", SERVICE, "--port", str(port), "--token-file", str(tokens), *options)
    async with kdispatch(url or world.url, folder, *arguments):
        yield


@asynccontextmanager
async def agent_connect(world: World, folder: Path, *options: str, url: str = "") -> AsyncIterator[int]:
    """Run `agent connect` for the service, which must have a host; yields its local port."""
    arguments = ("agent", "connect", SERVICE, "--quiet", *options)
    async with kdispatch(url or world.url, folder, *arguments) as process:
        assert process.stdout is not None
        async with asyncio.timeout(WAIT):
            line = await process.stdout.readline()
        yield int(line)


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A TCP service that echoes all bytes until the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def refusal(session: Session, entry: dict[str, Any], token: str | None = None) -> str:
    """Send an entry with a new number, and return the code of its refusal, or "gone" if its number is given up."""
    number = session.number()
    await session.send(message(Type.ATTACH, streams=[{**entry, "number": number}], token=token))
    queue = session.queue(number)
    async with asyncio.timeout(WAIT):
        while (frame := await queue.get()) is not None and frame.type is Type.ATTACH:
            pass  # the relay joins both ends; only the other end can check the proof
    assert frame is not None
    if frame.type is Type.GONE:
        return "gone"
    assert frame.type is Type.RESET
    return str(frame.json["code"])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
