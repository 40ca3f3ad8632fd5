from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from kdispatch_protocol.errors import CODES
from kdispatch_relay.api.routes import ROUTES
from kdispatch_relay.app import make_app
from kdispatch_relay.switch.views import ClientView, HostView, LiveHost
from tests.relay.support import Api

PAGE = (Path(__file__).parents[2] / "docs" / "rest-api.md").read_text()
EXAMPLES = re.findall(r"```sh\n(.*?)```\n\n```json\n(.*?)```", PAGE, re.DOTALL)
CHANGING = re.compile(r"\b(adm|svc|cli|inv)_[A-Za-z0-9_.-]+|\b[0-9a-f]{16}\b|\b\d{4}-\d\d-\d\dT[\d:]+Z")


def test_page_names_every_route(api: Api) -> None:
    """The routes on the page, in the headings and in the table, are those of the relay."""
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in make_app(api.relay.authority, api.gate, api.relay.arrivals, api.relay.limiter).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert set(re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)) == routes == {route.label for route in ROUTES}
    assert set(re.findall(r"^\| \[`(.+?)`\]", PAGE, re.MULTILINE)) == routes


def test_codes_of_the_page() -> None:
    """Every code on the page is in the table of codes, with the stated status."""
    told = re.findall(r"^Errors: (.+?)\.$", PAGE, re.MULTILINE | re.DOTALL)
    pairs = {pair for text in told for pair in re.findall(r"`(\w+)` \((\d+)", text)}
    assert len(pairs) >= 8
    assert {(code, str(CODES[code].http)) for code, _ in pairs} == pairs


async def test_examples(api: Api, tmp_path: Path) -> None:
    """The page's commands, run one after the other, give the answers shown below them."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    # 2026-01-31T09:30:00Z
    api.gate.live["ann/web"] = [HostView("4f1c09d2a8b35e6710fd42c98e6ba173", 1_769_851_800.0, {"region": "eu"}, 2)]
    api.gate.clients["ann/web"] = [
        ClientView("9a1de3c2f04b4a5c8f2e6d7b1c0a3e58", "192.0.2.7", 1_769_851_800.0, 1, None)
    ]
    api.gate.hosts["4f1c09d2a8b35e6710fd42c98e6ba173"] = LiveHost("ann/web", "00" * 32)
    api.relay.arrivals.refused.update(unknown_address=18231, timed_out=12)
    api.relay.limiter.limited.update(bad_tokens=3)
    assert len(EXAMPLES) == PAGE.count("```sh")
    folder = tmp_path / "shell"
    folder.mkdir()
    for command, answer in sorted(EXAMPLES, key=lambda example: "DELETE" in example[0]):  # removals come last
        # curl --json came with 7.82; older versions get the same in longer form.
        script = command.replace("--json", "--header 'Content-Type: application/json' --data")
        process = await asyncio.create_subprocess_exec(
            *("sh", "-eu", "-c", script),
            cwd=folder,
            env={"PATH": os.environ["PATH"], "RELAY": api.relay.url},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        got, expected = (json.loads(CHANGING.sub("X", text)) for text in (output.decode(), answer))
        assert got == expected
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
