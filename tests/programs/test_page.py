"""The examples of docs/programs.md, run like a person runs them, with real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import pytest

from tests.docs.examples import Example, Runner, examples_of
from tests.net.harness import Network, needs
from tests.programs.install import find
from tests.programs.servers import GIT, git_daemon, iperf3, postgres, redis
from tests.programs.tunnel import free_port, succeeds

pytestmark = pytest.mark.slow


class _Server(Protocol):
    """Starts a server for a section's examples and yields its port."""

    def __call__(self, network: Network, folder: Path) -> AbstractAsyncContextManager[int]: ...


@asynccontextmanager
async def _git(network: Network, folder: Path) -> AsyncIterator[int]:
    bare = folder / "served" / "project.git"
    await succeeds(network.program("init", *GIT, "init", "--bare", str(bare)))
    yield await git_daemon(network, bare.parent)


@asynccontextmanager
async def _postgres(network: Network, folder: Path) -> AsyncIterator[int]:
    async with postgres(network) as port:
        yield port


@asynccontextmanager
async def _redis(network: Network, folder: Path) -> AsyncIterator[int]:
    yield await redis(network, folder)


@asynccontextmanager
async def _iperf3(network: Network, folder: Path) -> AsyncIterator[int]:
    port, _ = await iperf3(network)
    yield port


_SECTIONS: Final = [
    pytest.param("git daemon", "git", "9418", _git, marks=needs("git"), id="git"),
    pytest.param("PostgreSQL", "postgres", "5432", _postgres, marks=needs(find("initdb"), find("psql")), id="postgres"),
    pytest.param("Redis", "redis", "6379", _redis, marks=needs(find("redis-server"), "redis-cli"), id="redis"),
    pytest.param("iperf3", "iperf", "5201", _iperf3, marks=needs("iperf3"), id="iperf3"),
]


@pytest.mark.parametrize(("section", "service", "port", "server"), _SECTIONS)
async def test_section(
    network: Network, tmp_path: Path, section: str, service: str, port: str, server: _Server
) -> None:
    """A section's commands, in order, give the results on the page."""
    async with server(network, tmp_path) as listens:
        runner = Runner(tmp_path, {port: str(listens), f"1{port}": str(free_port())})
        passwords = {name: value for name, value in network.environment.items() if name.startswith("PG")}
        runner.programs.environment |= passwords
        create = f"kdispatch service create {service} --quiet"
        async with runner.programs:
            await runner.run(Example("sh", "kdispatch relay serve", "listening on", None))
            sign_up = f"kdispatch sign-up ann --relay http://127.0.0.1:8443 --quiet && {create}"
            await runner.run(Example("sh", sign_up, None, None))
            examples = examples_of("docs/programs.md", section)
            assert len(examples) == 3
            for example in examples:
                await runner.run(example)
