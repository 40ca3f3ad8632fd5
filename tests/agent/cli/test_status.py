"""'kdispatch status' without a running agent."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kdispatch.cli import status
from kdispatch.cli.status import look
from kdispatch.machine import records
from tests.agent.cli.test_background_files import ONE


def test_a_look_that_takes_longer_than_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries follow each other every second, or at once if one took longer."""

    def slow(_: float) -> list[dict[str, Any]]:
        time.sleep(0.02)
        return []

    monkeypatch.setattr(status, "_EVERY", 0.01)
    monkeypatch.setattr(status, "look", slow)
    began = time.monotonic()
    assert list(islice(status._looks(), 5)) == [[]] * 5
    assert time.monotonic() - began >= 0.1
    monkeypatch.setattr(status, "look", lambda _: [])
    began = time.monotonic()
    list(islice(status._looks(), 5))
    assert time.monotonic() - began >= 0.04


def test_an_agent_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of an agent that does not answer is shown, but no secret of it."""
    monkeypatch.setenv("KDISPATCH_STATE_DIR", str(tmp_path))
    held = records.hold(ONE)
    held.control.listen()
    try:
        (agent,) = look(0.1)
        assert (agent["id"], agent["state"], agent["stream_count"]) == (ONE.id, "not answering", None)
        (offer,) = agent["services"]
        assert (offer["service"], offer["host"], offer["port"]) == (ONE.service, ONE.host, ONE.port)
        assert held.control_token not in str(agent)
    finally:
        held.remove()
    assert look(0.1) == []
