"""Real proxies and a real accelerator: the errors for failures that each program reports in its own way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from kdispatch.network.proxy import Proxy
from kdispatch.network.through import connect_through
from kdispatch_protocol.errors import CODES, KdispatchError
from tests.net.harness import Network, Process, eventually, needs
from tests.networks.site import free_port
from tests.programs.install import find
from tests.programs.servers import Ssh

pytestmark = pytest.mark.slow

_UNKNOWN: Final = "relay.invalid"  # does not resolve (RFC 2606)
_EXIT: Final = 6
_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))

_TINYPROXY: Final = """
Port {port}
Listen 127.0.0.1
Timeout 600
MaxClients 20
LogFile "{folder}/tinyproxy.log"
{more}
"""
_PRIVOXY: Final = """
listen-address 127.0.0.1:{port}
confdir {folder}
logdir {folder}
toggle 0
enable-remote-toggle 0
"""
_SQUID: Final = """
http_port 127.0.0.1:{port}
http_access allow all
cache deny all
pid_filename none
pinger_enable off
access_log none
cache_log {folder}/cache.log
"""
#: A common accelerator setup: squid does not pass Authorization on without login=PASSTHRU.
_ACCELERATOR: Final = """
http_port 127.0.0.1:{port} accel defaultsite=127.0.0.1 no-vhost
cache_peer 127.0.0.1 parent {relay} 0 no-query originserver
http_access allow all
cache deny all
pid_filename none
pinger_enable off
access_log none
cache_log {folder}/cache.log
"""


@asynccontextmanager
async def _running(name: str, config: str, command: Callable[[str, Path], list[str]]) -> AsyncIterator[int]:
    """Run the program with this configuration; yields its port."""
    program = find(name)
    if program == name:
        pytest.skip(f"{name} is not installed: make programs gets it")
    folder, port = Path(tempfile.mkdtemp(prefix=f"kdispatch-{name}-")), free_port()
    file = folder / f"{name}.conf"
    file.write_text(config.format(port=port, folder=folder))
    if name == "squid" and os.geteuid() == 0:  # squid drops root and runs as its own user
        file.write_text(file.read_text().replace("cache_effective_user root\n", ""))
        shutil.chown(folder, "proxy", "proxy")
    process = Process(name, command(program, file), folder)

    def is_up() -> bool:
        assert process.status is None, process.text
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        await eventually(is_up, expected=True, wait=30)
        yield port
    finally:
        process.stop(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


#: A program, its configuration, and the command to run it.
_Proxy = tuple[str, str, Callable[[str, Path], list[str]]]


def _tinyproxy(more: str = "") -> _Proxy:
    return "tinyproxy", _TINYPROXY.replace("{more}", more), lambda program, file: [program, "-d", "-c", str(file)]


def _privoxy() -> _Proxy:
    return "privoxy", _PRIVOXY, lambda program, file: [program, "--no-daemon", str(file)]


def _squid(config: str = _SQUID) -> _Proxy:
    return "squid", config, lambda program, file: [program, "-N", "-n", f"k{os.getpid()}", "-f", str(file)]


async def _fails(url: str, host: str, port: int = 443) -> KdispatchError:
    with pytest.raises(KdispatchError) as caught:
        await connect_through(Proxy.parse(url, "--proxy"), host, port)
    return caught.value


@pytest.mark.parametrize("proxy", [_tinyproxy, _privoxy, _squid])
async def test_a_name_that_a_proxy_does_not_know(
    proxy: Callable[[], _Proxy],
) -> None:
    """Each proxy's own status for an unknown name is reported as `relay_unreachable`, not as a refusal."""
    async with _running(*proxy()) as port:
        error = await _fails(f"http://127.0.0.1:{port}", _UNKNOWN)
    assert error.code == "relay_unreachable" and f"can't reach {_UNKNOWN}:443: it answers" in error.text


@pytest.mark.parametrize("proxy", [_tinyproxy, _privoxy, _squid])
async def test_a_port_on_which_nothing_listens(proxy: Callable[[], _Proxy]) -> None:
    """A relay that is down is reported as `relay_unreachable`, whatever the proxy answers."""
    async with _running(*proxy()) as port:
        error = await _fails(f"http://127.0.0.1:{port}", "127.0.0.1", free_port())
    assert error.code == "relay_unreachable" and "can't reach 127.0.0.1:" in error.text


@pytest.mark.parametrize(("credentials", "words"), [("me:wrong@", "does not accept"), ("", "wants a name")])
async def test_a_wrong_password_at_tinyproxy(credentials: str, words: str) -> None:
    """Tinyproxy's 401 for a wrong password is reported as the proxy's refusal."""
    async with _running(*_tinyproxy("BasicAuth me right")) as port:
        error = await _fails(f"http://{credentials}127.0.0.1:{port}", "127.0.0.1", free_port())
    assert error.code == "proxy_auth" and words in error.text


@pytest.mark.skipif(find("sshd") == "sshd" or not shutil.which("ssh"), reason="not installed: ssh, sshd")
async def test_a_target_that_refuses_behind_ssh(network: Network, tmp_path: Path) -> None:
    """If `ssh -D` closes without a reply because the target refuses, the error does not blame the proxy."""
    ssh = Ssh(network, tmp_path)
    to = await ssh.serve()
    ssh.knows(to, ssh.host_key)
    port = free_port()
    network.program("dynamic", *ssh.shell_command.split(), "-N", "-D", f"127.0.0.1:{port}", "-p", str(to), "127.0.0.1")

    def is_up() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    await eventually(is_up, expected=True, wait=30)
    error = await _fails(f"socks5://127.0.0.1:{port}", "127.0.0.1", free_port())
    assert error.code == "relay_unreachable" and "can't reach 127.0.0.1:" in error.text


@needs(find("squid"))
async def test_a_token_that_squid_keeps(network: Network) -> None:
    """Behind squid as accelerator, which removes Authorization, a command says that the token did not arrive."""
    relay = network.url.rpartition(":")[2]
    async with _running(*_squid(_ACCELERATOR.replace("{relay}", relay))) as port:
        network.environment["KDISPATCH_RELAY"] = f"http://127.0.0.1:{port}"
        program = network.program("list", _KDISPATCH, "service", "list")
        assert await program.ended() == _EXIT, program.text
        assert "The token did not arrive" in program.err and "you -> relay" in program.err
        assert CODES["token_refused"].hint not in program.err
