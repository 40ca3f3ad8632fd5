"""Runs migrations in a short-lived process: their code would stay in the relay's memory until it ends.

The child reads the database's URL from stdin, where no other user can see a password, and answers with a line of JSON.
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

_LAST_LINE: Final = 300  # characters of the child's last line
_BY_HAND: Final = "To see its full output, run 'kdispatch relay migrate'."

#: The child uses its parent's module path, however that was set, and never the current folder.
_CHILD: Final = """
import json, sys
task = json.loads(sys.stdin.readline())
sys.path[:] = task["path"]
from kdispatch_relay.store.apart import answer
answer(task["url"], task["wait"])
"""


async def upgrade_apart(url: str, wait: float) -> tuple[str | None, str | None]:
    """Bring the tables of ``url`` up to date in a child; returns the revisions before and after.

    Raises the child's errors with their codes, and ``OSError`` if no child can be started.
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
    """Run in the child: upgrade, then print the revisions or the error."""
    # A signal that stops the relay goes to the whole process group: the child finishes its work, then the relay stops.
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
            raise  # the parent reports the last line of its traceback
        told = {"code": "storage_unavailable", "text": text, "hint": SHORTAGE_HINT}
    sys.stdout.write(json.dumps(told) + "\n")
    leave(0)  # threads left by a failed start would keep the process alive


async def _upgrade(url: str, wait: float) -> tuple[str | None, str | None]:
    from kdispatch_relay.store.database import Database  # noqa: PLC0415 - it imports this module

    database = Database(url, wait=wait)
    try:
        return await database.start()
    finally:
        await database.close()
