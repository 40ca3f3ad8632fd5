"""The relay's own certificate and key, read anew when their files change."""

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

_LOOK: Final = 2.0  # seconds between two looks at the files
#: Seconds until files of no use are read, and told, once more: the certificate that is served instead will run out.
_AGAIN: Final = 3600.0

#: Of both files: when it was changed, it and its mode or owner, which one it is, and how long. A name may lead to
#: another file by a link; copies may keep the time and the length; and one that was unreadable may get another mode.
_Stamp = tuple[tuple[int, int, int, int] | None, ...]

_log = logging.getLogger("kdispatch.relay")


class Certificates:
    """``newest`` is what a new connection is served with: a context with the newest certificate that was sound.

    Not one context that chooses by a callback: Python prints a trace for each name in a hello that is no ASCII.

    Raises ``bad_request`` when it is made from files of no use.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._stamp = self._stamps()
        # A context of its own for each certificate: one that is loaded half, as a key and a certificate are changed
        # one after the other, serves nobody.
        self.newest = self._load()
        self._asked = asyncio.Event()
        self._retry: float | None = None  # when files of no use are read once more

    def read_again(self) -> None:
        """Look at the files now, whether they have changed or not."""
        self._asked.set()

    async def watch(self) -> None:
        """Read the files again as often as they have changed and are then left alone for a moment."""
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
                # Whoever writes one of the two may not have written the other one yet.
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
            # Without a password it would be asked for at the terminal, of whoever sits there.
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
