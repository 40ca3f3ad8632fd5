"""Threat 6: a stolen database."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.security.site import Caller, made, site


async def test_nothing_in_it_opens_anything(folder: Path) -> None:
    """The database files contain only SHA-256 digests of tokens, however created, and a digest gives no access."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        tokens = [await caller.admin("ann")]
        admin = tokens[0]
        tokens.append((await made(caller, "/services", admin, name="web", access="token"))["token"])
        tokens.append((await made(caller, "/services/ann/web/rotate", admin))["token"])
        for kind in ("admin", "host", "connect"):
            more = {} if kind == "admin" else {"service": "web"}
            tokens.append((await made(caller, "/tokens", admin, name=kind, **{"for": kind}, **more))["token"])
        tokens.append((await made(caller, "/services/ann/web/invites", admin, **{"for": "host"}))["code"])
        tokens.append((await made(caller, "/invites/accept", tokens[-1]))["token"])
        stolen = b"".join(file.read_bytes() for file in folder.glob("relay.db*"))  # noqa: ASYNC240 - three small files
        for token in tokens:
            secret = token[4:47].encode()
            assert not any(secret[at : at + 12] in stolen for at in range(len(secret) - 11)), (
                f"it has a part of an {token[:3]}_ token"
            )
            assert hashlib.sha256(token.encode()).digest() in stolen
        with closing(sqlite3.connect(folder / "relay.db")) as opened:
            found = [row[0] for row in opened.execute("SELECT digest FROM tokens UNION SELECT digest FROM invites")]
        assert len(found) >= len(tokens)
        for digest in found:
            for shown in (digest.hex(), f"adm_{digest.hex()}"):
                assert (await caller("GET", "/api/v1/whoami", shown)).status == 401
