"""Threat 10: script in names and in error texts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from tests.security.site import Caller, made, site

_SCRIPTS = ("<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "javascript:alert(1)", "ann{{7*7}}", "a'b")


@pytest.mark.parametrize("script", _SCRIPTS)
async def test_a_script_is_no_name(folder: Path, script: str) -> None:
    """Handles and services are plain labels, and every answer that repeats input is JSON and declared as JSON."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        admin = await caller.admin()
        answers = [
            await caller("POST", "/api/v1/admins", json={"handle": script}),
            await caller("POST", "/api/v1/services", admin, json={"name": script}),
            await caller("GET", f"/api/v1/services/ann/{quote(script, safe='')}", admin),
        ]
        for answer in answers:
            # The relay has no address with a brace in its path.
            told = ("unknown_address",) if answer is answers[2] and "{" in script else ("bad_name",)
            assert answer.status >= 400
            assert answer.body["code"] in told
            assert answer.headers["Content-Type"] == "application/problem+json; charset=utf-8"
        assert (await caller("GET", "/api/v1/services", admin)).body == {"services": []}


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\u202eb", "\u2028", "\x85", "a\u200bb", ""])
async def test_titles_are_plain(folder: Path, name: str) -> None:
    """Names of tokens and invitations have no control characters and none that hide or reorder nearby text."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        admin = await caller.admin()
        await made(caller, "/services", admin, name="web")
        for path, body in (("/tokens", {"for": "admin"}), ("/services/ann/web/invites", {"for": "host"})):
            answer = await caller("POST", f"/api/v1{path}", admin, json={**body, "name": name})
            assert answer.status == 422
            assert answer.body["code"] == "bad_request"
