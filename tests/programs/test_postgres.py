"""The installed psql and pgbench, and a real PostgreSQL."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.net.harness import Network, Process, needs, sizes
from tests.programs.install import find
from tests.programs.servers import postgres
from tests.programs.tunnel import succeeds, tunnel

pytestmark = [pytest.mark.slow, needs(find("initdb"), find("postgres"), find("psql"))]


def _psql(network: Network, port: int, *words: str, given: Path | None = None) -> Process:
    options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(port)]
    if given is None:
        return network.program("psql", find("psql"), *options, *words)
    return network.program("psql", find("psql"), *options, *words, given=given)


@pytest.mark.parametrize("rows", sizes(100_000, 2_000_000))
async def test_psql(network: Network, tmp_path: Path, rows: int) -> None:
    """A large result, COPY in both directions and transactions give the same results as without a tunnel."""
    lines = tmp_path / "lines"
    with lines.open("w") as file:
        file.writelines(f"{number}\t{hashlib.md5(str(number).encode()).hexdigest()}\n" for number in range(rows))
    async with postgres(network) as server:
        port = await tunnel(network, server)

        query = f"SELECT i, md5(i::text) FROM generate_series(0, {rows - 1}) i"
        assert await succeeds(_psql(network, port, "-F", "\t", "-c", query), 300) == lines.read_bytes()

        await succeeds(_psql(network, port, "-c", "CREATE TABLE t (i int PRIMARY KEY, h text)"))
        await succeeds(_psql(network, port, "-c", "COPY t FROM STDIN", given=lines), 300)
        copied = _psql(network, port, "-c", "COPY (SELECT * FROM t ORDER BY i) TO STDOUT")
        assert await succeeds(copied, 300) == lines.read_bytes()

        script = tmp_path / "script.sql"
        script.write_text("BEGIN; DELETE FROM t WHERE i < 10; COMMIT;\nBEGIN; DELETE FROM t; ROLLBACK;\n")
        await succeeds(_psql(network, port, "-f", str(script)), 300)
        assert await succeeds(_psql(network, port, "-c", "SELECT count(*) FROM t")) == b"%d\n" % (rows - 10)

        script.write_text("BEGIN;\nINSERT INTO t VALUES (1, 'one');\nINSERT INTO t VALUES (20, 'again');\nCOMMIT;\n")
        failing = _psql(network, port, "-f", str(script))
        assert await failing.ended() == 3
        assert "duplicate key value" in failing.err
        assert await succeeds(_psql(network, port, "-c", "SELECT count(*) FROM t")) == b"%d\n" % (rows - 10)


@needs(find("pgbench"))
@pytest.mark.parametrize("seconds", sizes(2, 20))
async def test_pgbench(network: Network, seconds: int) -> None:
    """Eight concurrent clients of pgbench run transactions without a failure, and the tables are consistent."""
    async with postgres(network) as server:
        port = await tunnel(network, server)
        pgbench = [find("pgbench"), "-h", "127.0.0.1", "-p", str(port)]
        await succeeds(network.program("fill", *pgbench, "-i", "-q", "-s", "1"), 120)
        run = network.program("pgbench", *pgbench, "-c", "8", "-j", "2", "-T", str(seconds))
        told = (await succeeds(run, 60 + seconds)).decode()
        done = re.search(r"transactions actually processed: (\d+)", told)
        assert done and int(done[1]) > 0, told
        assert "number of failed transactions: 0 " in told
        print(f"\npgbench, 8 clients: {int(done[1]) / seconds:.0f} transactions a second")
        sums = (
            "SELECT (SELECT count(*) FROM pgbench_history),"
            " (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)"
        )
        assert await succeeds(_psql(network, port, "-c", sums)) == f"{done[1]}|t\n".encode()
