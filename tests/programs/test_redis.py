"""The installed redis-cli and redis-benchmark, and a real server."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.net.harness import Network, Process, eventually, needs, sizes
from tests.programs.install import find
from tests.programs.servers import redis
from tests.programs.tunnel import MB, random_file, succeeds, tunnel

pytestmark = [pytest.mark.slow, needs(find("redis-server"), "redis-cli")]


class _Client:
    """redis-cli at the tunnel's port."""

    def __init__(self, network: Network, port: int) -> None:
        self._network = network
        self._command = ("redis-cli", "-h", "127.0.0.1", "-p", str(port))

    def start(self, *words: str, given: Path | None = None) -> Process:
        if given is None:
            return self._network.program("redis-cli", *self._command, *words)
        return self._network.program("redis-cli", *self._command, *words, given=given)

    async def says(self, *words: str, given: Path | None = None) -> bytes:
        """Return a command's answer, without the line end that redis-cli adds."""
        return (await succeeds(self.start(*words, given=given))).removesuffix(b"\n")


async def test_commands(network: Network, tmp_path: Path) -> None:
    """Values come back unchanged, also five megabytes of binary data; a missing key gives none."""
    client = _Client(network, await tunnel(network, await redis(network, tmp_path)))
    assert await client.says("SET", "greeting", "hello there") == b"OK"
    assert await client.says("GET", "greeting") == b"hello there"
    assert await client.says("GET", "nothing") == b""
    large = random_file(tmp_path, 5 * MB)
    assert await client.says("-x", "SET", "large", given=large) == b"OK"
    assert await client.says("STRLEN", "large") == str(5 * MB).encode()
    assert await client.says("GET", "large") == large.read_bytes()


@pytest.mark.parametrize("count", sizes(20_000, 500_000))
async def test_pipelined(network: Network, tmp_path: Path, count: int) -> None:
    """Commands sent without waiting for answers are all answered."""
    client = _Client(network, await tunnel(network, await redis(network, tmp_path)))
    commands = tmp_path / "commands"
    commands.write_bytes(b"".join(b"SET key-%d value-%d\r\n" % (number, number) for number in range(count)))
    told = await client.says("--pipe", given=commands)
    assert told.endswith(b"errors: 0, replies: %d" % count)
    assert await client.says("DBSIZE") == str(count).encode()
    assert await client.says("GET", f"key-{count - 1}") == f"value-{count - 1}".encode()


async def test_subscribed(network: Network, tmp_path: Path) -> None:
    """Messages reach a subscriber at once and in order, through an otherwise idle connection."""
    client = _Client(network, await tunnel(network, await redis(network, tmp_path)))
    subscriber = client.start("SUBSCRIBE", "news")
    await subscriber.says(r"subscribe\nnews\n1\n")
    sent = [f"message {number}" for number in range(5)]
    for message in sent:
        assert await client.says("PUBLISH", "news", message) == b"1"
    expected = [word for message in sent for word in ("message", "news", message)]
    await eventually(lambda: subscriber.out.decode().splitlines()[3:], expected)


@needs("redis-benchmark")
@pytest.mark.parametrize("count", sizes(3_000, 100_000))
async def test_benchmark(network: Network, tmp_path: Path, count: int) -> None:
    """redis-benchmark's fifty clients get all answers, one at a time and pipelined by sixteen."""
    port = await tunnel(network, await redis(network, tmp_path))
    for pipeline in ("1", "16"):
        options = ["-h", "127.0.0.1", "-p", str(port), "-c", "50", "-n", str(count), "-P", pipeline, "--csv"]
        benchmark = network.program("benchmark", "redis-benchmark", *options, "-t", "set,get,lpush,lrange_100")
        rows = list(csv.DictReader((await succeeds(benchmark, 300)).decode().splitlines()))
        print(f"\nredis-benchmark, {pipeline} at a time:", {row["test"]: row["rps"] for row in rows})
        assert [row["test"].split()[0] for row in rows] == ["SET", "GET", "LPUSH", "LPUSH", "LRANGE_100"]
        assert all(float(row["rps"]) > 0 for row in rows)
    client = _Client(network, port)
    assert int((await client.says("LLEN", "mylist")).decode()) >= 2 * count
