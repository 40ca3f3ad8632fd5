"""What a relay logs, and in which form."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from urllib.request import urlopen

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Reset
from kdispatch_relay.door.listener import Port
from kdispatch_relay.serving import _Told
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.switch.views import Left
from tests.aio.twin import SERVICE, running_gate, until
from tests.relay.test_gate import _Agent, _carried
from tests.relay.test_serve import refused, serving


@pytest.mark.parametrize("verbose", [True, False])
async def test_streams_and_sessions(caplog: pytest.LogCaptureFixture, verbose: bool) -> None:
    """With -v each session's begin and end and each stream's end is a record with figures; without it there is none."""
    caplog.set_level(logging.DEBUG if verbose else logging.INFO, "kdispatch.relay")
    async with (
        running_gate() as relay,
        _Agent.of(relay, b"\x11" * 32) as client,
        _Agent.of(relay, b"\x22" * 32) as host,
    ):
        number = await _carried(client, host)
        client.send(frame(frames.DATA, 3, 0, b"ping"))
        await host.next(frames.DATA)
        host.send(frame(frames.DATA, number, 0, b"pong!"))
        await client.next(frames.DATA)
        client.send(frame(frames.RESET, 3, payload=Reset(code="cancelled").encode()))
        await host.next(frames.RESET)
        client.open(5)
        await host.next(frames.OPEN)
        client.send(frame(frames.RESET, 5, payload=Reset(code="cancelled").encode()))
        await host.next(frames.RESET)
        client._writer.transport.abort()
        await until(lambda: len(relay.gate._links) == 1)
        records = [vars(record) for record in caplog.records if record.levelno < logging.WARNING]
        assert bool(records) is verbose
        if not verbose:
            return
        assert [r["agent"] for r in records if r["msg"] == "session began"] == [client.process, host.process]
        streams = [r for r in records if r["msg"] == "stream ended"]
        assert [(r["sent"], r["received"], r["code"]) for r in streams] == [(4, 5, "cancelled"), (0, 0, "cancelled")]
        for stream in streams:
            assert (stream["service"], stream["client"], stream["source"]) == (SERVICE, client.process, "127.0.0.1")
            assert stream["host"] == relay.gate.hosts_of(SERVICE)[0].host
            assert 0 <= stream["seconds"] < 2


@pytest.mark.slow
def test_json_log(tmp_path: Path) -> None:
    """In the JSON form, all of stderr is one record a line, including the one with the address."""
    with serving(tmp_path, "--listen", "127.0.0.1:0", "-v", KDISPATCH_SERVE_LOG_FORMAT="json") as (process, line):
        assert process.stderr is not None
        record = json.loads(line)
        while "url" not in record:  # with -v it reports more of itself
            record = json.loads(process.stderr.readline())
        assert record["event"] == f"kdispatch relay listening on {record['url']}"
        with urlopen(f"{record['url']}/healthz", timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 0
        assert all(json.loads(line) for line in rest.splitlines())


def test_draining_as_records(caplog: pytest.LogCaptureFixture) -> None:
    """The messages of a draining relay have their figures in fields as well."""
    told = _Told(RelaySettings(log_format="json", drain_time=5))
    told.port = Port.TAKEN
    with caplog.at_level(logging.INFO, "kdispatch.relay"):
        told.left(Left(1, 2, 3))
        told.left(Left(1, 1, 1))
        told.finished(Left(1, 0, 0))
    first, second, last = [vars(record) for record in caplog.records]
    assert (first["hosts"], first["clients"], first["streams"], first["seconds"], first["port"]) == (
        1,
        2,
        3,
        5,
        "taken",
    )
    assert (second["hosts"], second["clients"], second["streams"]) == (1, 1, 1)
    assert (last["hosts"], last["clients"], last["streams"]) == (1, 0, 0)
    assert "1 host, 1 client and 1 stream are left." in caplog.records[1].getMessage()


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (Left(0, 0, 0), "every agent has left."),
        (Left(2, 1, 7), "2 hosts and 1 client are cut off. Their streams, 7"),
    ],
)
def test_the_last_word(capsys: pytest.CaptureFixture[str], left: Left, said: str) -> None:
    """The last message says whether all agents have left; a relay without agents writes none."""
    told = _Told(RelaySettings())
    told.finished(Left(0, 0, 0))
    assert capsys.readouterr().err == ""
    told.left(Left(2, 1, 7))
    told.finished(left)
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith("New connections are refused until another relay listens.")
    assert said in last


@pytest.mark.slow
def test_unknown_format(tmp_path: Path) -> None:
    """An unknown form is refused in three lines, before anything is created."""
    result = refused(tmp_path, "--log-format", "xml")
    first, where, hint = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, "")
    assert first.endswith("[bad_request]") and where == "  where: you" and hint.startswith("  try:   ")
    assert not list(tmp_path.iterdir())
