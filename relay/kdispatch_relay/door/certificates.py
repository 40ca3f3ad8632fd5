"""The relay's own certificate and key, read again when their files change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from pathlib import Path
from typing import Final

from kdispatch_protocol.errors import KdispatchError

__all__ = ["Certificates"]

_LOOK: Final = 2.0  # seconds between two checks of the files
#: Seconds until unusable files are read and reported once more: the certificate served instead will expire.
_AGAIN: Final = 3600.0

#: For each of the two files: modification time, status change time, inode and size. A name may link to another file,
#: copies may keep time and size, and an unreadable file may get another mode.
_Stamp = tuple[tuple[int, int, int, int] | None, ...]

_log = logging.getLogger("kdispatch.relay")


class Certificates:
    """Loads certificates. ``newest`` is the context for new connections, with the newest certificate that was valid.

    There is no single context with a callback: Python prints a trace for each server name that is not ASCII.

    Raises ``bad_request`` if the files are unusable at the start.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._stamp = self._stamps()
        # Each certificate has its own context. Key and certificate are replaced one after the other, and a context that
        # loaded only one of them is never used.
        self.newest = self._load()
        self._asked = asyncio.Event()
        self._retry: float | None = None  # when unusable files are read once more

    def read_again(self) -> None:
        """Read the files now, even if they have not changed."""
        self._asked.set()

    async def watch(self) -> None:
        """Read the files again after each change, once they have stayed the same for one check."""
        changed = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            stamp = await asyncio.to_thread(self._stamps)
            if asked or (changed and stamp == self._stamp) or self._due():
                changed = False
                self._stamp = stamp
                await self._replace()
            elif stamp != self._stamp:
                # The program that writes one file may not have written the other one yet.
                changed = True
                self._stamp = stamp

    def _due(self) -> bool:
        return self._retry is not None and time.monotonic() >= self._retry

    async def _replace(self) -> None:
        self._retry = None
        try:
            self.newest = await asyncio.to_thread(self._load)
        except KdispatchError as error:
            self._retry = time.monotonic() + _AGAIN
            _log.error("%s The one that was read before is still served.", error.text, extra={"code": error.code})
        else:
            _log.info("The certificate was read again: new connections get it.")

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without this, OpenSSL asks for a password at the terminal.
            context.load_cert_chain(*self._files, password=lambda: b"")
        except OSError as error:
            certificate, key = self._files
            text = f"The TLS certificate and key can't be used: {_words(error)} ({certificate}, {key})."
            raise KdispatchError("bad_request", text) from error
        return context

    def _stamps(self) -> _Stamp:
        return tuple(map(_stamp, self._files))


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "no PEM, or a key with a password"
    return error.strerror or str(error)


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
