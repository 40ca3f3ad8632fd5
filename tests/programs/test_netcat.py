"""The installed nc: programs that send, half-close, and then read the answer."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from tests.net.harness import MIB, Network, needs, sizes
from tests.net.tcp import Tcp, service
from tests.programs.tunnel import KB, MB, digest, random_file, succeeds, tunnel

pytestmark = [pytest.mark.slow, needs("nc")]

_DIALOGUES = 50


async def _must_have_half_close(network: Network) -> None:
    helps = network.program("nc-help", "nc", "-h")
    await helps.ended()
    if "OpenBSD netcat" not in helps.text:
        pytest.skip("this nc is not OpenBSD's, so it has no -N")


async def test_both_ways(network: Network, tmp_path: Path) -> None:
    """Two nc send each other a file and half-close: both files arrive complete, and both programs exit with 0."""
    await _must_have_half_close(network)
    up, down = random_file(tmp_path, 3 * MIB + 1), random_file(tmp_path, 2 * MIB + 1)
    serving = network.program("nc-service", "nc", "-v", "-N", "-l", "127.0.0.1", "0", given=down)
    port = await tunnel(network, int((await serving.says(r"Listening on \S+ (\d+)"))[1]))
    asking = network.program("nc-client", "nc", "-N", "127.0.0.1", str(port), given=up)
    got = [await succeeds(program) for program in (serving, asking)]
    assert [hashlib.sha256(data).hexdigest() for data in got] == [digest(up), digest(down)]


@pytest.mark.parametrize("size", sizes(100 * KB, 2 * MB))
async def test_dialogues(network: Network, tmp_path: Path, size: int) -> None:
    """Fifty nc at once send, half-close, and get the complete answer, which the service starts only after that."""
    await _must_have_half_close(network)
    everybody = asyncio.Barrier(_DIALOGUES)

    async def answer(tcp: Tcp) -> None:
        question = await tcp.receive_all()
        await everybody.wait()  # until all are half-closed
        await tcp.send(hashlib.sha256(question).digest() + question[::-1])

    questions = [random_file(tmp_path, size + number) for number in range(_DIALOGUES)]
    async with service(answer) as served:
        port = await tunnel(network, served.port)
        asking = [network.program("nc", "nc", "-N", "127.0.0.1", str(port), given=file) for file in questions]
        answers = [await succeeds(program, 120) for program in asking]
    for file, got in zip(questions, answers, strict=True):
        question = file.read_bytes()
        assert got == hashlib.sha256(question).digest() + question[::-1], f"{len(got)} bytes for {len(question)}"
