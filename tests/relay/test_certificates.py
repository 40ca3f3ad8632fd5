"""The relay's own certificate: read again when its files change, and kept if the new files are unusable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from kdispatch.network.certificate import Certificate
from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.door import certificates
from kdispatch_relay.door.certificates import Certificates

_LOOK = 0.05


class Files:
    """A certificate and its key, as an operator's tool writes them."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.certificate, self.key = folder / "relay.pem", folder / "relay.key"

    def write(self, *names: str, key: bool = True) -> bytes:
        """Write new ones for these names; returns the digest of the new key."""
        made = self.ca.issue_cert(*names)
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        if key:
            self.key.write_bytes(made.private_key_pem.bytes())
        return Certificate.parse(ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())).key

    async def served(self) -> Certificates:
        return await asyncio.to_thread(Certificates, self.certificate, self.key)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr(certificates, "_LOOK", _LOOK)
    return Files(tmp_path)


@asynccontextmanager
async def _serving(certificates: Certificates) -> AsyncIterator[int]:
    """A server with this certificate, which is watched; yields its port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    async def serve(accepted: socket.socket) -> None:
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo)
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=certificates.newest)

    async def accept() -> None:
        while True:
            await serve((await loop.sock_accept(listening))[0])

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        running = [asyncio.create_task(certificates.watch()), asyncio.create_task(accept())]
        try:
            yield listening.getsockname()[1]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def _connect(port: int, name: str | None = None) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection, and the digest of the key that the server showed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "127.0.0.1")
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return Certificate.parse(shown).key, reader, writer


async def _shows(port: int, name: str | None = None) -> bytes:
    key, _, writer = await _connect(port, name)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return key


async def _will_show(port: int, key: bytes) -> None:
    async with asyncio.timeout(20):
        while await _shows(port) != key:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_LOOK)


async def test_a_changed_certificate_is_served(files: Files) -> None:
    """New connections get the new certificate, with or without a server name; running ones go on."""
    first = files.write("127.0.0.1")
    async with _serving(await files.served()) as port:
        shown, reader, writer = await _connect(port)
        assert shown == first == await _shows(port, "relay.example")
        second = files.write("127.0.0.1")
        await _will_show(port, second)
        assert await _shows(port, "relay.example") == second
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()


async def test_what_is_of_no_use_is_told_and_not_served(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """A certificate without its key, or a missing file, leaves the one before in use, and one line in the log."""
    first = files.write("127.0.0.1")
    async with _serving(await files.served()) as port:
        files.write("127.0.0.1", key=False)
        await asyncio.sleep(8 * _LOOK)
        files.key.unlink()
        await asyncio.sleep(8 * _LOOK)
        assert await _shows(port) == first
        told = _errors(caplog)
        assert len(told) == 2, told
        assert all("can't be used" in line and "still served" in line for line in told)
        await _will_show(port, files.write("127.0.0.1"))


async def test_a_change_that_keeps_time_and_length_is_seen(files: Files) -> None:
    """A copy with the old time and length is still noticed as a new certificate."""
    length, time = 4096, (1_700_000_000, 1_700_000_000)

    def write() -> bytes:
        key = files.write("127.0.0.1")
        for path in (files.certificate, files.key):
            path.write_bytes(path.read_bytes().ljust(length, b"\n"))
            os.utime(path, time)
        return key

    first = write()
    async with _serving(await files.served()) as port:
        assert await _shows(port) == first
        await _will_show(port, write())


async def test_files_of_no_use_are_told_again(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that stay unusable are reported again and again, by name, until they are valid."""
    monkeypatch.setattr(certificates, "_AGAIN", 2 * _LOOK)
    files.write("127.0.0.1")
    async with _serving(await files.served()) as port:
        files.key.write_bytes(b"")
        async with asyncio.timeout(20):
            while len(_errors(caplog)) < 3:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(_LOOK)
        assert all(str(files.key) in line and "no PEM" in line for line in _errors(caplog))
        await _will_show(port, files.write("127.0.0.1"))
        told = len(_errors(caplog))
        await asyncio.sleep(8 * _LOOK)
        assert len(_errors(caplog)) == told


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.ERROR]


async def test_it_is_read_again_when_asked(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to read the files again is not delayed until the next check or a visible change."""
    monkeypatch.setattr(certificates, "_LOOK", 60)
    files.write("127.0.0.1")
    served = await files.served()
    async with _serving(served) as port:
        second = files.write("127.0.0.1")
        served.read_again()
        await _will_show(port, second)


def test_files_of_no_use_end_a_start(files: Files) -> None:
    """A relay does not start with a certificate that it cannot serve."""
    with pytest.raises(KdispatchError) as caught:
        Certificates(files.certificate, files.key)
    assert caught.value.code == "bad_request" and "can't be used" in caught.value.text
