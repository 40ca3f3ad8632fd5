"""An agent in the background is started with every option of the command that starts it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from typer.testing import CliRunner

from kdispatch.cli import agent
from kdispatch.cli.running import Start
from kdispatch.settings import load_settings

_GIVEN: dict[str, dict[str, Any]] = {
    "host": {"exit_when_closed": True},
    "connect": {"open_wait": 41.0, "host": "0123456789abcdef"},
}
_BOTH: dict[str, Any] = {
    "address": "127.0.0.9",
    "port": 4711,
    "wait": 3.5,
    "drain_time": 6.5,
    "grace": 77.0,
    "rotate": 900.0,
    "log_format": "json",
    "verbose": True,
}
#: Fields that an agent in the background gets in another way, or not at all.
_OTHER = {"kind", "service", "reach", "token", "token_file", "quiet", "json", "background"}


@pytest.mark.parametrize("kind", ["host", "connect"])
def test_round_trip(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line of the background agent parses to the same options as the first command."""
    given = _BOTH | _GIVEN[kind]
    names = {field.name for field in dataclasses.fields(Start)}
    assert names == _OTHER | _BOTH.keys() | _GIVEN["host"].keys() | _GIVEN["connect"].keys()
    plain: dict[str, Any] = dict.fromkeys(names)
    start = Start(**{**plain, "kind": kind, "service": "ann/web", "reach": {}, "exit_when_closed": False, **given})
    settings = load_settings(grace=77.0, rotate=900.0, log_format="json", open_wait=41.0)
    read: list[Start] = []
    monkeypatch.setattr(agent, "_run", lambda start, *_, **__: read.append(start))
    arguments = [kind, "ann/web", *start.repeated(settings)]
    done = CliRunner().invoke(agent.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for name in _BOTH.keys() | _GIVEN[kind].keys():
        assert getattr(read[0], name) == given[name], name


def test_settings_in_force_are_repeated() -> None:
    """A setting from the environment becomes an option of the background agent."""
    plain: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Start))
    start = Start(**{**plain, "kind": "connect", "service": "ann/web", "reach": {}})
    repeated = start.repeated(load_settings(grace=77.0))
    assert repeated[repeated.index("--grace") + 1] == "77.0"
    assert "--open-wait" in repeated and "--verbose" not in repeated
