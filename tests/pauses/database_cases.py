"""Databases, caches and queues: their own clients, and libraries for Python."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from typing import Final

from tests.pauses.rig import Case, Site, script
from tests.programs.install import find

__all__ = ["CASES"]

_SLOW: Final = "CREATE TABLE t(x text); INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 300000)"


def _as(user: str, *paths: Path) -> list[str]:
    """The prefix for a command that may not run as root: it runs as this user, who gets the paths."""
    if os.geteuid() != 0:
        return []
    entry = pwd.getpwnam(user)
    for path in paths:
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


async def _postgres(site: Site) -> int:
    data = site.folder / "pg"
    data.mkdir()
    site.folder.chmod(0o755)
    command = _as("postgres", data)
    await site.run(
        *command, find("initdb"), "-A", "trust", "-U", "ann", "-E", "UTF8", "--no-locale", "--no-sync", str(data)
    )
    port = site.free_port()
    options = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={data}", "fsync=off"]
    await site.serve(
        "postgres",
        *command,
        *(find("postgres"), "-D", str(data), *(part for option in options for part in ("-c", option))),
        ready="ready to accept connections",
    )
    await site.run("psql", "-h", "127.0.0.1", "-p", str(port), "-U", "ann", "-d", "postgres", "-qc", _SLOW)
    return port


def _psql(site: Site, *more: str) -> list[str]:
    return ["psql", "-h", "127.0.0.1", "-p", str(site.port), "-U", "ann", "-d", "postgres", "-At", *more]


def _pg_dump(site: Site) -> list[str]:
    # A pipe with its own rate, so that pv is not needed.
    dump = f"pg_dump -h 127.0.0.1 -p {site.port} -U ann postgres"
    return ["bash", "-c", f"set -o pipefail; {dump} | python3 {site.file('slowly.py', _SLOWLY)} {300_000_000}"]


_SLOWLY: Final = """
import sys, time
total, want = 0, int(sys.argv[1])
while chunk := sys.stdin.buffer.read(40_000_000):
    total += len(chunk)
    time.sleep(1)
sys.exit(total < want)
"""
_PSYCOPG: Final = """
import sys, psycopg
with psycopg.connect(f"host=127.0.0.1 port={sys.argv[1]} user=ann dbname=postgres") as connection:
    print(connection.execute("SELECT pg_sleep(6), 'there'").fetchone()[1])
"""
_ASYNCPG: Final = """
import asyncio, sys, asyncpg
async def main():
    connection = await asyncpg.connect(host="127.0.0.1", port=int(sys.argv[1]), user="ann", database="postgres")
    print(await connection.fetchval("SELECT 'there' FROM pg_sleep(6)"))
asyncio.run(main())
"""


async def _mariadb(site: Site) -> int:
    data = site.folder / "my"
    data.mkdir()
    site.folder.chmod(0o755)
    command = _as("mysql", data)
    await site.run(
        *command,
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={data}",
        f"--tmpdir={data}",
        "--auth-root-authentication-method=normal",
    )
    port = site.free_port()
    socket = data / "s"
    await site.serve(
        "mariadbd",
        *command,
        *(
            find("mariadbd"),
            "--no-defaults",
            f"--datadir={data}",
            f"--tmpdir={data}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
        ),
        *(f"--socket={socket}", "--pid-file=p", "--local-infile=1"),
        port=port,
    )
    await site.run(
        *("mariadb", "--no-defaults", "-S", str(socket), "-u", "root", "-e"),
        "DROP USER IF EXISTS ''@'localhost'; CREATE USER ann@'%' IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO ann@'%';"
        "FLUSH PRIVILEGES; CREATE DATABASE d; USE d;"
        "CREATE TABLE d.t(x VARCHAR(1000)); INSERT INTO d.t SELECT REPEAT('x',1000) FROM seq_1_to_300000;"
        "CREATE TABLE d.u(x VARCHAR(1000));",
    )
    return port


def _mariadb_client(site: Site, *more: str) -> list[str]:
    return ["mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", str(site.port), "-uann", "-psecret", *more, "d"]


def _mariadb_reads(site: Site) -> list[str]:
    slowly = site.file("slowly.py", _SLOWLY)
    command = " ".join(_mariadb_client(site, "--quick", "-N", "-e", "'SELECT * FROM t'"))
    return ["bash", "-c", f"set -o pipefail; {command} | python3 {slowly} 300000000"]


def _mariadb_loads(site: Site) -> list[str]:
    # The file is larger than the tunnel's buffers, so that the server waits in the middle of it.
    with (site.folder / "rows").open("w") as file:
        for _ in range(400):
            file.write(("y" * 999 + "\n") * 1000)
    return _mariadb_client(
        site, "--local-infile=1", "-e", f"LOAD DATA LOCAL INFILE '{site.folder / 'rows'}' INTO TABLE u"
    )


_PYMYSQL: Final = """
import sys, pymysql
connection = pymysql.connect(host="127.0.0.1", port=int(sys.argv[1]), user="ann", password="secret")
cursor = connection.cursor()
cursor.execute("SELECT SLEEP(6), 'there'")
print(cursor.fetchone()[1])
"""


async def _redis(site: Site) -> int:
    port = site.free_port()
    await site.serve(
        "redis",
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--dir",
        str(site.folder),
        port=port,
    )
    site.notes["redis"] = str(port)
    return port


def _counted(site: Site, text: str) -> str:
    """Compare the counter with the number of increments that the client saw succeed."""
    got = subprocess.run(
        [find("redis-cli"), "-p", site.notes["redis"], "GET", "n"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    told = sum(line == "ok" for line in text.splitlines())
    done = int(got.stdout.strip() or 0)
    return f"{told} writes told as done, {done} done" if done != told else ""


_REDIS_PY: Final = """
import sys, time, redis
client = redis.Redis(port=int(sys.argv[1]))
failed = ""
end = time.monotonic() + 6
while time.monotonic() < end:
    try:
        client.incr("n")
        print("ok", flush=True)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
        print(failed, flush=True)
    time.sleep(0.1)
if failed:
    sys.exit(failed)
"""
_REDIS_PY_ONCE: Final = """
import sys, time, redis
client = redis.Redis(port=int(sys.argv[1]))
client.ping()
print("begins", flush=True)
time.sleep(4)
client.incr("n")
print("ok")
"""


def _redis_pipe(site: Site) -> list[str]:
    """All commands are sent, and the last answer takes 6 s; redis-cli's timer runs from the end of its input."""
    with (site.folder / "commands").open("w") as file:
        for number in range(1000):
            file.write(f"SET k{number} v\r\n")
        file.write("BLPOP none 6\r\n")
    return ["bash", "-c", f"redis-cli -p {site.port} --pipe < commands"]


async def _memcached(site: Site) -> int:
    port = site.free_port()
    await site.serve(
        "memcached", "memcached", "-l", "127.0.0.1", "-p", str(port), "-u", "nobody", "-m", "256", port=port
    )
    return port


def _memccp(site: Site) -> list[str]:
    for number in range(40):
        site.file(f"f{number}", "x" * 1000)
    loop = f"for f in $(seq 0 39); do memccp --servers=127.0.0.1:{site.port} f$f || exit; sleep 0.2; done"
    return ["bash", "-c", loop]


_PYMEMCACHE: Final = """
import sys, time
from pymemcache.client.base import Client
client = Client(("127.0.0.1", int(sys.argv[1])))
for number in range(60):
    client.set("k", str(number))
    time.sleep(0.1)
print(client.get("k"))
"""


async def _etcd(site: Site) -> int:
    port, peers = site.free_port(), site.free_port()
    url = f"http://127.0.0.1:{port}"
    await site.serve(
        "etcd",
        *("etcd", "--data-dir", str(site.folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url),
        *(
            "--listen-peer-urls",
            f"http://127.0.0.1:{peers}",
            "--initial-advertise-peer-urls",
            f"http://127.0.0.1:{peers}",
        ),
        *("--initial-cluster", f"default=http://127.0.0.1:{peers}"),
        port=port,
    )
    return port


def _etcdctl(site: Site) -> list[str]:
    loop = f"for n in $(seq 60); do etcdctl --endpoints=127.0.0.1:{site.port} put k $n || exit; sleep 0.1; done"
    return ["bash", "-c", f"export ETCDCTL_API=3; {loop}"]


CASES: Final = [
    Case(
        "psql",
        "waits for an answer",
        _postgres,
        lambda s: _psql(s, "-c", "SELECT pg_sleep(6)"),
        ("psql", "initdb"),
        version=("psql", "--version"),
    ),
    Case("pg_dump", "dump of 300 MB", _postgres, _pg_dump, ("pg_dump", "initdb"), version=("pg_dump", "--version")),
    Case("psycopg", "waits for an answer", _postgres, script(_PSYCOPG), ("initdb",), version=("pip", "psycopg")),
    Case("asyncpg", "waits for an answer", _postgres, script(_ASYNCPG), ("initdb",), version=("pip", "asyncpg")),
    Case(
        "mariadb",
        "waits for an answer",
        _mariadb,
        lambda s: _mariadb_client(s, "-e", "SELECT SLEEP(6)"),
        ("mariadb", "mariadbd"),
        version=("mariadb", "--version"),
    ),
    Case(
        "mariadb, a large result",
        "reads 300 MB",
        _mariadb,
        _mariadb_reads,
        ("mariadb", "mariadbd"),
        helps="the server's `net_write_timeout=150`",
        version=("mariadb", "--version"),
    ),
    Case(
        "mariadb, LOAD DATA",
        "sends 400 MB",
        _mariadb,
        _mariadb_loads,
        ("mariadb", "mariadbd"),
        after=0.7,
        helps="the server's `net_read_timeout=150`",
        version=("mariadb", "--version"),
    ),
    Case("PyMySQL", "waits for an answer", _mariadb, script(_PYMYSQL), ("mariadbd",), version=("pip", "PyMySQL")),
    Case(
        "redis-cli",
        "a command each 0.1 s",
        _redis,
        lambda s: ["redis-cli", "-p", str(s.port), "-r", "60", "-i", "0.1", "INCR", "n"],
        ("redis-cli", "redis-server"),
        version=("redis-cli", "--version"),
    ),
    Case(
        "redis-cli --pipe",
        "waits for the last answer",
        _redis,
        _redis_pipe,
        ("redis-cli", "redis-server"),
        helps="`--pipe-timeout 150`",
        version=("redis-cli", "--version"),
    ),
    Case(
        "redis-py",
        "a write each 0.1 s",
        _redis,
        script(_REDIS_PY),
        ("redis-server",),
        good=_counted,
        counts=True,
        helps="`socket_timeout=150`, or `retry=None` where a write must not run twice",
        version=("pip", "redis"),
    ),
    Case(
        "redis-py, one write",
        "one write in the pause",
        _redis,
        script(_REDIS_PY_ONCE),
        ("redis-server",),
        begun="begins",
        after=1.0,
        good=_counted,
        counts=True,
        version=("pip", "redis"),
    ),
    Case(
        "libmemcached (memccp)",
        "a write each 0.2 s",
        _memcached,
        _memccp,
        ("memccp", "memcached"),
        version=("memccp", "--version"),
    ),
    Case(
        "pymemcache",
        "a write each 0.1 s",
        _memcached,
        script(_PYMEMCACHE),
        ("memcached",),
        version=("pip", "pymemcache"),
    ),
    Case(
        "etcdctl",
        "a write each 0.1 s",
        _etcd,
        _etcdctl,
        ("etcdctl", "etcd"),
        version=("etcdctl", "version"),
        helps="`--command-timeout=150s --dial-timeout=150s`",
    ),
]
