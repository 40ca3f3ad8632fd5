"""Ports and addresses on which this user, or this machine, cannot listen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.net.harness import LOOPS

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
#: Root without the right to take any port, where all others need it.
_WITHOUT_RIGHT: Final = ("setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service", "--")
_PRIVILEGED: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
#: Nothing listens there: the port is refused before anybody is asked.
_RELAY: Final = ("--relay", "http://127.0.0.1:1", "--wait", "0")

COMMANDS: Final = {
    "relay": ("relay", "serve", "--listen", "{}", "--insecure-plaintext"),
    "connect": ("agent", "connect", "ann/web", "--address", "{address}", "--port", "{port}", *_RELAY),
}


def _refused(folder: Path, kind: str, address: str, port: int, *before: str, loop: str) -> tuple[int, str]:
    command = [part.format(f"{address}:{port}", address=address, port=port) for part in COMMANDS[kind]]
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(folder),
        "KDISPATCH_CONFIG_DIR": str(folder),
        "KDISPATCH_STATE_DIR": str(folder / "state"),
        "KDISPATCH_NO_UVLOOP": "1" if loop == "asyncio" else "",
    }
    ended = subprocess.run(
        [*before, _KDISPATCH, *command], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_port_below_1024(tmp_path: Path, kind: str, loop: str) -> None:
    """A privileged port is refused as such, and the error says how to get the right."""
    if shutil.which("setpriv") is None or os.getuid() != 0 or int(_PRIVILEGED.read_text()) <= 443:
        pytest.skip("takes root, setpriv, and a system whose low ports take a right")
    status, said = _refused(tmp_path, kind, "127.0.0.1", 443, *_WITHOUT_RIGHT, loop=loop)
    assert (status, "[port_forbidden]" in said, "Ports below 1024" in said) == (5, True, True), said
    assert "127.0.0.1:443 can't be listened on: Permission denied." in said


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", COMMANDS)
def test_an_address_of_another_machine(tmp_path: Path, kind: str, loop: str) -> None:
    """An address that no interface has is reported as such."""
    status, said = _refused(tmp_path, kind, "192.0.2.1", 8443, loop=loop)
    assert (status, "[address_not_here]" in said) == (1, True), said
