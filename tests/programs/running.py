"""Long-running programs, each through a tunnel, with checks that they make progress."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final, Protocol, Self

from tests.net.harness import Network, Process, eventually
from tests.net.tcp import Tcp
from tests.programs.install import find
from tests.programs.servers import Ssh, redis
from tests.programs.trees import make_tree, same_trees
from tests.programs.tunnel import succeeds, tunnel

__all__ = ["Copies", "Counter", "Running", "Subscription", "Transaction"]

_SOON: Final = 60.0  # seconds; after many losses agents wait for up to 15 between tries
_PUBLISHED_EVERY: Final = 0.02  # seconds


class Running(Protocol):
    """A program in the middle of its work."""

    async def goes_on(self) -> None:
        """Return when data sent after this call has come through the program's connection."""
        ...

    async def finish(self) -> str:
        """Let the program end, and check all its output; returns a summary."""
        ...


class Counter:
    """``ssh`` with a command that counts until a file appears."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self._folder = folder

    @classmethod
    async def start(cls, network: Network, ssh: Ssh, port: int, folder: Path) -> Self:
        count = "i=0; while [ ! -e stop ]; do echo $i; echo $i > new; mv new count; i=$((i+1)); sleep 0.02; done"
        counter = cls(ssh.run(port, f"mkdir {folder} && cd {folder} && {count}; echo to the end >&2; exit 42"), folder)
        await counter.process.says(r"\n5\n")
        return counter

    async def goes_on(self) -> None:
        counted = (self._folder / "count").read_text()
        await eventually(lambda: f"\n{counted}".encode() in self.process.out, expected=True, wait=_SOON)

    async def finish(self) -> str:
        (self._folder / "stop").touch()
        assert await self.process.ended() == 42
        counted = int((self._folder / "count").read_text()) + 1
        assert self.process.out == b"".join(b"%d\n" % number for number in range(counted))
        assert self.process.err == "to the end\n"
        return f"ssh counted to {counted}"


class Transaction:
    """``psql`` with one transaction that gets row after row."""

    def __init__(self, network: Network, server: int, typed: int, process: Process) -> None:
        self.process = process
        self._network = network
        self._server = server
        self._typed = typed
        self._rows = 0

    @classmethod
    async def start(cls, network: Network, server: int, folder: Path) -> Self:
        await succeeds(_psql(network, server, "-c", "CREATE TABLE numbers (i int PRIMARY KEY)"))
        fifo = folder / "typed"
        os.mkfifo(fifo)
        # Opened for reading and writing: opening for only one would block until the other end opens.
        typed = os.open(fifo, os.O_RDWR)
        port = await tunnel(network, server)
        transaction = cls(network, server, os.open(fifo, os.O_WRONLY), _psql(network, port, given=fifo))
        os.close(typed)
        transaction._type("BEGIN;")
        await transaction.goes_on()
        return transaction

    def _type(self, line: str) -> None:
        os.write(self._typed, line.encode() + b"\n")

    async def goes_on(self) -> None:
        self._rows += 1
        self._type(f"INSERT INTO numbers VALUES ({self._rows}) RETURNING i, pg_backend_pid(), txid_current();")
        await eventually(lambda: self.process.out.count(b"\n"), self._rows, _SOON)

    async def finish(self) -> str:
        count = "SELECT count(*) FROM numbers"
        assert await succeeds(_psql(self._network, self._server, "-c", count)) == b"0\n"
        self._type("COMMIT;")
        os.close(self._typed)
        rows = [row.split("|") for row in (await succeeds(self.process)).decode().splitlines()]
        assert [row[0] for row in rows] == [str(number) for number in range(1, self._rows + 1)]
        assert len({(pid, transaction) for _, pid, transaction in rows}) == 1
        assert self.process.err == ""
        assert await succeeds(_psql(self._network, self._server, "-c", count)) == b"%d\n" % self._rows
        return f"psql inserted {self._rows} rows in one transaction"


def _psql(network: Network, port: int, *words: str, given: Path = Path(os.devnull)) -> Process:
    options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(port)]
    return network.program("psql", find("psql"), *options, *words, given=given)


class Subscription:
    """``redis-cli SUBSCRIBE``, and a publisher outside the tunnel that never pauses."""

    def __init__(self, process: Process, group: asyncio.TaskGroup, server: int) -> None:
        self.process = process
        self._published = 0
        self._ending = False
        self._publisher = group.create_task(self._publish(server))

    @classmethod
    async def start(cls, network: Network, group: asyncio.TaskGroup, folder: Path) -> Self:
        server = await redis(network, folder)
        port = await tunnel(network, server)
        process = network.program("redis-cli", "redis-cli", "-h", "127.0.0.1", "-p", str(port), "SUBSCRIBE", "news")
        await process.says(r"subscribe\nnews\n1\n")
        return cls(process, group, server)

    async def _publish(self, server: int) -> None:
        async with await Tcp.connect(server) as tcp:
            while not self._ending:
                await tcp.send(b"PUBLISH news %d\r\n" % self._published)
                assert await tcp.receive_exactly(4) == b":1\r\n"  # number of receivers
                self._published += 1
                await asyncio.sleep(_PUBLISHED_EVERY)

    async def _got(self, number: int) -> None:
        await eventually(lambda: b"news\n%d\n" % number in self.process.out, expected=True, wait=_SOON)

    async def goes_on(self) -> None:
        await self._got(self._published)  # the next message

    async def finish(self) -> str:
        self._ending = True
        await self._publisher
        await self._got(self._published - 1)
        said = self.process.out.removeprefix(b"subscribe\nnews\n1\n")
        assert said == b"".join(b"message\nnews\n%d\n" % number for number in range(self._published))
        assert self.process.err == ""
        return f"redis-cli got {self._published} messages"


class Copies:
    """A slow ``rsync --checksum`` of a tree, repeated until the end."""

    def __init__(self, network: Network, group: asyncio.TaskGroup, given: Path, folder: Path, rsync: list[str]) -> None:
        self._network = network
        self._given = given
        self._folder = folder
        self._rsync = rsync
        self._copies = 0
        self._went_on = [0]  # progress checks passed by each copy
        self._ending = False
        self._copier = group.create_task(self._copy())

    @classmethod
    async def start(
        cls, network: Network, group: asyncio.TaskGroup, ssh: Ssh, port: int, folder: Path, size: int, rate: int
    ) -> Self:
        """Start copying; the largest file has ``size`` bytes, and the rate is about ``rate`` bytes per second."""
        given = folder / "given"
        make_tree(given, size)
        rsync = ["rsync", "-a", "--checksum", f"--bwlimit={rate // 1024}", "-e", f"{ssh.shell_command} -p {port}"]
        return cls(network, group, given, folder, rsync)

    @property
    def _there(self) -> Path:
        return self._folder / f"copy-{self._copies}"

    async def _copy(self) -> None:
        while not self._ending:
            copying = self._network.program("rsync", *self._rsync, f"{self._given}/", f"127.0.0.1:{self._there}/")
            assert await succeeds(copying, 600) == b""
            assert copying.err == ""
            await same_trees(self._network, self._given, self._there)
            self._copies += 1
            self._went_on.append(0)

    def _progress(self) -> tuple[int, int]:
        size = 0
        for path in self._there.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # rsync renames temporary files
                size += path.lstat().st_size
        return self._copies, size

    async def goes_on(self) -> None:
        before = self._progress()
        await eventually(lambda: self._progress() > before, expected=True, wait=_SOON)
        self._went_on[before[0]] += 1

    async def finish(self) -> str:
        self._ending = True
        await self._copier
        return f"rsync made {self._copies} copies, each through so many restarts: {self._went_on[:-1]}"
