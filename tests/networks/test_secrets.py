"""A proxy's password appears in no process list, log, record or answer."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.net.tcp import Tcp, echo, service
from tests.networks.site import PASSWORD, Authority
from tests.networks.ways import CREDENTIALS, Park, agents, proxy_url

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

_SECRETS: Final = (PASSWORD, CREDENTIALS.partition(":")[2].rstrip("@"))


def _process_list() -> str:
    """The parts of all processes' entries that every user can read."""
    shown = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for name in ("cmdline", "comm"):
                with contextlib.suppress(OSError):
                    shown.append((process / name).read_bytes().decode(errors="replace"))
    return "\n".join(shown)


def _hidden(text: str) -> None:
    for secret in _SECRETS:
        assert secret not in text


async def test_an_agent_in_the_background(tmp_path: Path, park: Park, authority: Authority) -> None:
    """A background agent gets the password of a proxy in its arguments, and no other user can see it."""
    site = await park.site("relay")
    name = await site.service()
    async with (
        proxy_url("digest", park) as proxy,
        service(echo) as echoing,
        agents(tmp_path, site, "", authority, "SSL_CERT_FILE") as ours,
    ):
        network = ours.network
        network.environment |= {"KDISPATCH_RELAY": f"https://relay.test:{site.port}", "KDISPATCH_DEBUG": "1"}
        await network.host(name, echoing.port, "--proxy", proxy)
        _hidden(_process_list())
        started = network.agent("detached", "connect", name, "--detach", "--json", "--proxy", proxy)
        assert await started.ended() == 0, started.text
        try:
            async with await Tcp.connect(int(json.loads(started.out)["port"])) as tcp:
                await tcp.send(b"hello")
                assert await tcp.receive_exactly(5) == b"hello"
            _hidden(_process_list())
        finally:
            stopped = network.agent("stop", "stop", name)
            assert await stopped.ended() == 0, stopped.text
        # This error comes from the background process.
        refused = network.agent("refused", "connect", name, "--detach", "--proxy", proxy.replace("%20x@", "%20y@"))
        assert await refused.ended() == 6
        assert "[proxy_auth]" in refused.err
        for process in network.processes:
            _hidden(process.text.replace("%20y", "%20x"))
        for file in (tmp_path / "state").rglob("*"):
            _hidden(file.read_text() if file.is_file() else "")
