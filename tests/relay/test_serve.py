"""``relay serve`` in a process of its own."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from kdispatch_protocol.errors import KdispatchError
from tests.guards.environment import inherited
from tests.relay.support import relay_api

COMMAND = [sys.executable, "-W", "error", "-c", "from kdispatch_relay.cli import app; app()", "serve"]


@contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A relay process and the line that it printed; killed at the end if it still runs."""
    made = {**_clean_environment(folder), **environment}
    with subprocess.Popen([*COMMAND, *arguments], env=made, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield process, process.stderr.readline()
        finally:
            process.kill()


def refused(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    made = {**_clean_environment(folder), **environment}
    return subprocess.run([*COMMAND, *arguments], env=made, capture_output=True, text=True, timeout=60, check=False)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _clean_environment(folder: Path) -> dict[str, str]:
    return {**inherited(), "XDG_DATA_HOME": str(folder)}


@pytest.mark.slow
def test_serve(tmp_path: Path) -> None:
    """A relay prints in one line where it listens, answers there, and ends cleanly on SIGTERM."""
    with serving(tmp_path, "--listen", "127.0.0.1:0") as (process, line):
        found = re.fullmatch(r"kdispatch relay listening on (http://127\.0\.0\.1:[1-9]\d*)\n", line)
        assert found, line
        with urlopen(f"{found[1]}/healthz", timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        assert (process.returncode, rest) == (0, "")
    assert (tmp_path / "kdispatch" / "relay.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
)
def test_second_signal_ends_at_once(tmp_path: Path, first: signal.Signals, second: signal.Signals) -> None:
    """After the first SIGINT or SIGTERM a relay waits for a pending request; the second ends it at once."""
    environment = {"KDISPATCH_SERVE_LISTEN": "127.0.0.1:0", "KDISPATCH_SERVE_DATABASE": str(tmp_path / "mine.db")}
    with serving(tmp_path, **environment) as (process, line):
        port = int(line.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sender:
            head = (
                "POST /api/v1/admins HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            )
            sender.sendall(head.encode())
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
                assert answer.status == 200
            process.send_signal(first)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.send_signal(second)
            assert process.wait(2) == -second
    assert (tmp_path / "mine.db").exists()


@pytest.mark.slow
def test_two_signals_at_the_same_moment(tmp_path: Path) -> None:
    """Of two signals at the same moment, the second ends the relay or comes too late; neither leaves a traceback."""
    with serving(tmp_path, "--listen", "127.0.0.1:0") as (process, line):
        assert "listening on" in line
        process.send_signal(signal.SIGSTOP)  # so that both wait for it
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        _, rest = process.communicate(timeout=30)
        assert process.returncode in {-signal.SIGINT, -signal.SIGTERM}
        assert rest == ""


@pytest.mark.slow
def test_public_plaintext_is_refused(tmp_path: Path) -> None:
    """A relay does not serve tokens in plain text on a public address; the refusal names a solution."""
    result = refused(tmp_path, "--listen", "0.0.0.0:0")
    assert result.returncode == 2
    assert result.stdout == ""
    first, _, hint = result.stderr.splitlines()
    assert first.startswith("kdispatch: 0.0.0.0:0 can be reached")
    assert first.endswith("[plaintext_refused]")
    assert "--insecure-plaintext" in hint


@pytest.mark.slow
def test_port_in_use(tmp_path: Path) -> None:
    """A port in use is reported as such, with exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        result = refused(tmp_path, KDISPATCH_SERVE_LISTEN=f"127.0.0.1:{holder.getsockname()[1]}")
    assert result.returncode == 1
    assert result.stderr.splitlines()[0].endswith("[port_in_use]")


def test_help_is_quick() -> None:
    """The help of the command does not import what only a running relay needs."""
    heavy = {"aiohttp", "alembic", "pydantic", "sqlalchemy"}
    code = f"import sys, kdispatch_relay.cli; sys.exit(' '.join(sys.modules.keys() & {heavy}) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


async def test_ipv6(tmp_path: Path) -> None:
    """A relay can listen on an IPv6 address, and writes it in brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with relay_api(tmp_path / "relay.db", listen="[::1]:0") as api:
        assert api.relay.url.startswith("http://[::1]:")
        assert (await api("GET", "/healthz")).status == 200


async def test_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """With a certificate and its key, the relay serves HTTPS itself."""
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    async with relay_api(tmp_path / "relay.db", tls_cert=cert, tls_key=key) as api:
        assert api.relay.url.startswith("https://")
        assert (await api("GET", "/healthz", ssl=trust)).status == 200


async def test_useless_certificate(tmp_path: Path) -> None:
    """Unusable TLS files end the start before anything else is touched."""
    with pytest.raises(KdispatchError, match="TLS certificate and key can't be used") as caught:
        async with relay_api(tmp_path / "relay.db", tls_cert=tmp_path / "none", tls_key=tmp_path / "none"):
            pass
    assert caught.value.code == "bad_request"
    assert names(tmp_path) == set()


async def test_address_of_somebody_else(tmp_path: Path) -> None:
    """An address that is not this machine's is reported as such, because it may become its own a moment later."""
    with pytest.raises(KdispatchError, match=r"192\.0\.2\.1:0 can't be listened on") as caught:
        async with relay_api(tmp_path / "relay.db", listen="192.0.2.1:0", insecure_plaintext=True):
            pass
    assert caught.value.code == "address_not_here"


@pytest.mark.slow
def test_as_many_descriptors_as_the_system_allows(tmp_path: Path) -> None:
    """A relay that starts with a low limit of descriptors raises it as far as allowed."""
    if not Path("/proc/self/limits").exists():
        pytest.skip("only Linux shows another process's limits")
    low = ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh", *COMMAND, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(low, env=_clean_environment(tmp_path), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "listening on" in process.stderr.readline()
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            found = re.search(r"Max open files +(\d+) +(\d+)", limits)
            assert found and found[1] == found[2]
        finally:
            process.terminate()
