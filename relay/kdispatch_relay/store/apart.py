"""Migrations in a short-lived process of their own: what migrates would stay in a relay's memory until it ends.

The child gets the database's URL on its stdin, where nobody else can read a password, and answers by one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import Any, Final

from kdispatch_protocol.errors import CODES, KdispatchError

__all__ = ["answer", "upgrade_apart"]

#: The child finds modules where its parent does, whatever brought these there, and never in the current folder.
_CHILD: Final = """
import json, sys
task = json.loads(sys.stdin.readline())
sys.path[:] = task["path"]
from kdispatch_relay.store.apart import answer
answer(task["url"], task["wait"])
"""


async def upgrade_apart(url: str, wait: float) -> tuple[str | None, str | None]:
    """Bring the tables of ``url`` up to date by a child; returns the revisions before and after.

    The child's errors are raised here with their codes; ``OSError`` where there can't be one.
    """
    task = json.dumps({"url": url, "wait": wait, "path": sys.path})
    # Its stderr is ours: a defect's traceback belongs where the relay's own would be.
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await child.communicate(f"{task}\n".encode())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    return _revisions(out, child.returncode)


def _revisions(out: bytes, status: int | None) -> tuple[str | None, str | None]:
    told: dict[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError):
        told.update(json.loads(out))
    if told.get("code") in CODES:
        raise KdispatchError(told["code"], told["text"])
    if status != 0 or not {"before", "after"} <= told.keys():
        text = f"The process that brings the database up to date failed with status {status}."
        raise KdispatchError("storage_unavailable", text)
    return told["before"], told["after"]


def answer(url: str, wait: float) -> None:
    """The child's part: upgrade, then print the revisions or the error."""
    # Who stops the relay stops the group: what was begun is ended in order, and then the relay stops.
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)
    told: dict[str, Any]
    try:
        before, after = asyncio.run(_upgrade(url, wait))
        told = {"before": before, "after": after}
    except KdispatchError as error:
        told = {"code": error.code, "text": error.text}
    sys.stdout.write(json.dumps(told) + "\n")


async def _upgrade(url: str, wait: float) -> tuple[str | None, str | None]:
    from kdispatch_relay.store.database import Database  # noqa: PLC0415 - it imports this module

    database = Database(url, wait=wait)
    try:
        return await database.start()
    finally:
        await database.close()
