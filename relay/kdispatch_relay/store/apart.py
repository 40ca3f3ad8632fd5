"""Migrations in a short-lived process of their own: what migrates would stay in a relay's memory until it ends.

The child gets the database's URL on its stdin, where nobody else can read a password, and answers by one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from typing import Any, Final

from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.process.unblocked import leave
from kdispatch_protocol.shortage import SHORTAGE_HINT, shortage
from kdispatch_relay.store.failures import StorageError

__all__ = ["answer", "upgrade_apart"]

_log = logging.getLogger(__name__)

_LAST_LINE: Final = 300  # characters of what a child said last
_BY_HAND: Final = "See all it says with 'kdispatch relay migrate'."

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
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _CHILD, stdin=pipe, stdout=pipe, stderr=pipe
    )  # fmt: skip
    try:
        out, err = await child.communicate(f"{task}\n".encode())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    return _revisions(out, err, child.returncode)


def _revisions(out: bytes, err: bytes, status: int | None) -> tuple[str | None, str | None]:
    told: dict[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError):
        told.update(json.loads(out))
    if told.get("code") in CODES:
        error = KdispatchError(told["code"], told["text"])
        raise StorageError(error.text, str(told["hint"])) if told.get("hint") else error
    if status != 0 or not {"before", "after"} <= told.keys():
        lines = err.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        _log.debug("The process that brings the database up to date said: %s", "\n".join(lines))
        how = f"was ended by signal {-status}" if status is not None and status < 0 else f"failed with status {status}"
        text = f"The process that brings the database up to date {how}: {last[:_LAST_LINE]}."
        raise StorageError(text, f"{_BY_HAND} {SHORTAGE_HINT}")
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
        told = {"code": error.code, "text": error.text, "hint": getattr(error, "hint", None)}
    except Exception as error:
        if (text := shortage(error)) is None:
            raise  # its traceback's last line is told
        told = {"code": "storage_unavailable", "text": text, "hint": SHORTAGE_HINT}
    sys.stdout.write(json.dumps(told) + "\n")
    leave(0)  # threads that a failed start has left would keep it


async def _upgrade(url: str, wait: float) -> tuple[str | None, str | None]:
    from kdispatch_relay.store.database import Database  # noqa: PLC0415 - it imports this module

    database = Database(url, wait=wait)
    try:
        return await database.start()
    finally:
        await database.close()
