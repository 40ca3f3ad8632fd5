from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.net.harness import Network
from tests.programs.servers import postgres
from tests.relay.empty import write_empty_database
from tests.relay.postgres import Server
from tests.relay.support import Api, relay_api


@pytest.fixture(autouse=True)
def untold_room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only test_room sees the warning of a relay whose user may open few files, as users other than root often may."""
    logger, told = logging.getLogger("kdispatch.relay"), request.path.name == "test_room.py"

    def keep(record: logging.LogRecord) -> bool:
        return told or record.module != "room"

    logger.addFilter(keep)
    yield
    logger.removeFilter(keep)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with empty tables, to copy."""
    return write_empty_database(tmp_path_factory.mktemp("empty") / "relay.db")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The PostgreSQL server for tests that are marked to use it, by the marks in ``tests.relay.postgres``."""
    network = Network(tmp_path_factory.mktemp("postgres"), "", "")
    with asyncio.Runner() as runner:
        running = postgres(network)
        server = Server(runner.run(running.__aenter__()), network.environment)
        try:
            runner.run(server.start())
            yield server
        finally:
            runner.run(running.__aexit__(None, None, None))


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> str:
    """An empty database with tables: a file, or a PostgreSQL database if the test is marked so."""
    if getattr(request, "param", "sqlite") == "postgres":
        server: Server = request.getfixturevalue("postgres_server")
        return server.emptied()
    return str(shutil.copy(empty_database, tmp_path / "relay.db"))


@pytest.fixture
async def api(tmp_path: Path, location: str) -> AsyncIterator[Api]:
    async with relay_api(tmp_path / "relay.db", database=location) as running:
        yield running


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run([openssl, *make.split(), *names], check=True, capture_output=True)
    return cert, key
