"""A relay's certificates: reading, verification and its reasons, pins, and client certificates."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from kdispatch.network.certificate import Certificate
from kdispatch.network.dialer import Dialer
from kdispatch.network.trust import Trust, certificate_error
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError

_NOW = datetime.now(UTC).replace(tzinfo=None)
_DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA(organization_name="Ours")


def _der(certificate: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())


@pytest.fixture(scope="module")
def file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The authority's certificate."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


class Server:
    """A server that uses TLS, and keeps what it receives."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.received = bytearray()

    def url(self, host: str = "127.0.0.1") -> RelayUrl:
        return RelayUrl.parse(f"https://{host}:{self.port}")


@asynccontextmanager
async def _server(
    certificate: trustme.LeafCert, *, clients: trustme.CA | None = None, most: ssl.TLSVersion | None = None
) -> AsyncIterator[Server]:
    """In threads: asyncio's own server does not send the alert of a handshake that it refuses, as others do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    if most is not None:
        context.maximum_version = most

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as speaking:
            while data := speaking.recv(1024):
                found.received += data
                speaking.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                serve(listening.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = Server(listening.getsockname()[1])
        serving = threading.Thread(target=accept)
        serving.start()
        try:
            yield found
        finally:
            with contextlib.suppress(OSError):  # Windows refuses it; there the close ends accept()
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            await asyncio.to_thread(serving.join)


async def _fails(dialer: Dialer) -> KdispatchError:
    async with asyncio.timeout(20):
        with pytest.raises(KdispatchError) as caught:
            await dialer.upgrade()
    return caught.value


def test_a_certificate_is_read_as_others_read_it(ca: trustme.CA) -> None:
    """Names, dates, issuer and the key's digest are those that the library cryptography finds."""
    for key_type in (trustme.KeyType.ECDSA, trustme.KeyType.RSA):
        made = ca.issue_cert("a.example", "*.b.example", "127.0.0.1", "::1", organization_name="Örg", key_type=key_type)
        read, theirs = Certificate.parse(_der(made)), x509.load_der_x509_certificate(_der(made))
        names = theirs.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert sorted(read.names) == sorted(
            [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        )
        assert (read.not_before, read.not_after) == (theirs.not_valid_before_utc, theirs.not_valid_after_utc)
        spki = theirs.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert read.key == hashlib.sha256(spki).digest()
        assert "O=Ours" in read.issuer and "O=Örg" in read.subject


_SEED = _der(trustme.CA().issue_cert("a.example"))


@given(st.integers(0, len(_SEED) - 1), st.binary(max_size=4), st.integers(0, 8))
def test_whatever_is_no_certificate_is_said_so(place: int, instead: bytes, cut: int) -> None:
    """A certificate that is cut or changed is either read or refused, without other errors."""
    with contextlib.suppress(ValueError):
        Certificate.parse(_SEED[:place] + instead + _SEED[place + cut :])


async def test_who_is_not_trusted_is_named(ca: trustme.CA) -> None:
    """The issuer is shown for an unknown authority: it may be that of a network that intercepts TLS."""
    async with _server(ca.issue_cert("127.0.0.1")) as server:
        error = await _fails(Dialer(server.url()))
    assert error.code == "tls_unknown_ca"
    assert "is issued by" in error.text and "O=Ours" in error.text and "which this machine does not trust" in error.text
    assert not server.received


async def test_files_that_openssl_passes_over_are_named(
    ca: trustme.CA, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unreadable authorities in the environment are named when a certificate is refused for lack of them."""
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    async with _server(ca.issue_cert("127.0.0.1")) as server:
        for useless, why in ((tmp_path / "none.pem", "no such file"), (nothing, "no certificate")):
            monkeypatch.setenv("SSL_CERT_FILE", str(useless))
            error = await _fails(Dialer(server.url()))
            assert error.code == "tls_unknown_ca"
            assert f"SSL_CERT_FILE names {useless}, which can't be used: {why}" in error.text
        monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join([str(tmp_path), str(nothing)]))
        assert f"SSL_CERT_DIR names {nothing}, which" in (await _fails(Dialer(server.url()))).text
        # With a file of authorities by setting, the variables are not used.
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        assert "SSL_CERT" not in (await _fails(Dialer(server.url(), trust=Trust(ca_file=str(other))))).text
        monkeypatch.setenv("SSL_CERT_FILE", file)
        assert (await _fails(Dialer(server.url()))).code == "not_a_relay"


async def test_a_chain_that_is_cut_is_told(tmp_path: Path) -> None:
    """The error mentions that the server may have left out intermediate certificates."""
    root = trustme.CA()
    made = root.create_child_ca().issue_cert("127.0.0.1")
    file = tmp_path / "root.pem"
    root.cert_pem.write_to_path(str(file))
    async with _server(made) as server:
        assert (await _fails(Dialer(server.url(), trust=Trust(ca_file=str(file))))).code == "not_a_relay"
    async with _server(trustme.LeafCert(made.private_key_pem.bytes(), made.cert_chain_pems[0].bytes(), [])) as server:
        error = await _fails(Dialer(server.url(), trust=Trust(ca_file=str(file))))
    assert error.code == "tls_unknown_ca" and "may leave out the certificates in between" in error.text


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (-67818, "tls_expired"),
        (-67819, "tls_not_yet_valid"),
        (-67602, "tls_wrong_host"),
        (-67843, "tls_unknown_ca"),
        (0x800B010F, "tls_wrong_host"),
        (0x800B0109, "tls_unknown_ca"),
        (66, "tls_unknown_ca"),
    ],
)
async def test_other_systems_numbers(ca: trustme.CA, number: int, code: str) -> None:
    """What macOS and Windows refuse has the codes of OpenSSL's refusals; an unknown reason keeps its words."""
    error = ssl.SSLCertVerificationError("refused")
    error.verify_code, error.verify_message = number, "The key is too small."
    async with _server(ca.issue_cert("other.example")) as server:
        found = await _explained(server, error)
    assert found.code == code
    if code == "tls_unknown_ca":
        trusted = "which this machine does not trust" in found.text
        assert trusted is (number != 66) and found.text.endswith("The key is too small.")


async def test_windows_has_one_number_for_both_ends(ca: trustme.CA) -> None:
    """Windows reports future certificates like expired ones; the certificate's own dates distinguish them."""
    error = ssl.SSLCertVerificationError("refused")
    error.verify_code, error.verify_message = 0x800B0101, "Not within its validity period."
    for begin, code in ((-9 * _DAY, "tls_expired"), (_DAY, "tls_not_yet_valid")):
        made = ca.issue_cert("127.0.0.1", not_before=_NOW + begin, not_after=_NOW + begin + _DAY)
        async with _server(made) as server:
            assert (await _explained(server, error)).code == code


async def _explained(server: Server, error: ssl.SSLCertVerificationError) -> KdispatchError:
    async def connect() -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
        return sock

    return await certificate_error("relay", Trust(), "127.0.0.1", error, connect)


async def test_another_name_is_told(ca: trustme.CA, file: str) -> None:
    """A certificate for other names lists them, and the error suggests --server-name if that is intended."""
    async with _server(ca.issue_cert("other.example", "third.example")) as server:
        error = await _fails(Dialer(server.url(), trust=Trust(ca_file=file)))
        named = await _fails(Dialer(server.url(), trust=Trust(ca_file=file, server_name="third.example")))
    assert error.code == "tls_wrong_host"
    assert "is for other.example, third.example, and not for 127.0.0.1" in error.text
    assert named.code == "not_a_relay"  # the verification succeeded
    assert server.received.count(b"GET ") == 1


@pytest.mark.parametrize(
    ("begin", "end", "code", "says"),
    [(-9 * _DAY, -2 * _DAY, "tls_expired", "expired on"), (2 * _DAY, 9 * _DAY, "tls_not_yet_valid", "is valid from")],
)
async def test_dates_are_told_with_the_clock(
    ca: trustme.CA, file: str, begin: timedelta, end: timedelta, code: str, says: str
) -> None:
    """The error for an expired or future certificate has its date, and this machine's time."""
    made = ca.issue_cert("127.0.0.1", not_before=_NOW + begin, not_after=_NOW + end)
    async with _server(made) as server:
        error = await _fails(Dialer(server.url(), trust=Trust(ca_file=file)))
    assert error.code == code
    assert says in error.text and f"by this machine's clock it is {datetime.now(UTC):%Y-%m-%d}" in error.text
    assert not server.received


@pytest.mark.parametrize("form", ["hex", "base64"])
async def test_a_pin(ca: trustme.CA, file: str, form: str) -> None:
    """A relay with the pinned key is accepted, any other is refused, although its certificate is valid."""
    made = ca.issue_cert("127.0.0.1")
    key = Certificate.parse(_der(made)).key
    text = key.hex() if form == "hex" else base64.b64encode(key).decode()
    wrong = Settings(relay="https://127.0.0.1", ca_file=file, pin=f"sha256:{'00' * 32}")
    right = Settings(relay="https://127.0.0.1", ca_file=file, pin=f"{wrong.pin}, sha256:{text}")
    async with _server(made) as server:
        error = await _fails(Dialer(server.url(), trust=Trust.of(wrong)))
        assert error.code == "tls_wrong_pin"
        assert f"sha256:{key.hex()}" in error.text
        assert not server.received
        assert (await _fails(Dialer(server.url(), trust=Trust.of(right)))).code == "not_a_relay"
        assert server.received


def test_the_pages_command_prints_a_pin(ca: trustme.CA, tmp_path: Path) -> None:
    """The command in docs/networks.md prints the digest that is pinned."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed: the page's command can't be run")
    made = ca.issue_cert("relay.example.org")
    made.cert_chain_pems[0].write_to_path(str(tmp_path / "relay.pem"))
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    commands = [line.strip() for line in page.splitlines() if line.strip().startswith("openssl ")]
    assert len(commands) == 1
    printed = subprocess.run(["sh", "-c", commands[0]], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.split()[-1] == Certificate.parse(_der(made)).key.hex()


@pytest.mark.parametrize("pin", ["sha256:abc", "abc", "md5:0123", f"sha256:{'g' * 64}", "sha256:" + "A" * 44])
def test_what_is_no_pin(pin: str) -> None:
    """An invalid pin is refused at the start, with the valid form."""
    with pytest.raises(SetupError) as caught:
        Trust.of(Settings(pin=pin))
    assert caught.value.code == "bad_request" and "sha256:" in caught.value.hint


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate(ca: trustme.CA, file: str, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A server that requests our certificate gets it; without one, the error says what is missing."""
    mine = ca.issue_cert("me@example.org")
    (tmp_path / "me.pem").write_bytes(b"".join(pem.bytes() for pem in mine.cert_chain_pems))
    (tmp_path / "me.key").write_bytes(mine.private_key_pem.bytes())
    (tmp_path / "both.pem").write_bytes(mine.private_key_and_cert_chain_pem.bytes())
    apart = Trust(ca_file=file, client_cert=str(tmp_path / "me.pem"), client_key=str(tmp_path / "me.key"))
    in_one = Trust(ca_file=file, client_cert=str(tmp_path / "both.pem"))
    async with _server(ca.issue_cert("127.0.0.1"), clients=ca, most=version) as server:
        without = await _fails(Dialer(server.url(), trust=Trust(ca_file=file)))
        assert not server.received
        # TLS 1.2 has no alert for this. The server resets the connection behind the alert: Windows may drop the alert.
        if version is ssl.TLSVersion.TLSv1_3 and not (sys.platform == "win32" and without.code == "relay_unreachable"):
            assert without.code == "tls_client_cert", without.text
        for trust in (apart, in_one):
            assert (await _fails(Dialer(server.url(), trust=trust))).code == "not_a_relay"
    assert server.received.count(b"GET ") == 2


async def test_files_of_no_use(tmp_path: Path) -> None:
    """Missing files and files that are not PEM are named, and so is a key without its certificate."""
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    for trust in (
        Trust(ca_file=str(nothing)),
        Trust(ca_file=str(tmp_path / "none.pem")),
        Trust(client_cert=str(nothing)),
        Trust(client_key=str(nothing)),
    ):
        with pytest.raises(SetupError) as caught:
            trust.context()
        assert caught.value.code == "bad_request"
        assert str(tmp_path) in caught.value.text or "without its certificate" in caught.value.text


async def test_a_new_authority_is_read_at_the_next_try(ca: trustme.CA, tmp_path: Path) -> None:
    """A repaired file of authorities is used by a running agent without a restart."""
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    async with _server(ca.issue_cert("127.0.0.1")) as server:
        dialer = Dialer(server.url(), trust=Trust(ca_file=str(path)))
        assert (await _fails(dialer)).code == "tls_unknown_ca"
        ca.cert_pem.write_to_path(str(path))
        assert (await _fails(dialer)).code == "not_a_relay"


def test_the_systems_own_trust() -> None:
    """Without a file the system's authorities count, and certificates are always verified."""
    context = Trust().context()
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", [".x", "a..b", "x" * 64, "a b", "a/b"])
def test_what_is_no_server_name(name: str) -> None:
    """A name that no certificate can have is refused at the start, and not later by a library."""
    with pytest.raises(SetupError) as caught:
        Trust.of(Settings(server_name=name))
    assert "--server-name" in caught.value.hint


def test_a_pin_needs_tls() -> None:
    """A pin that cannot be checked is refused, and not ignored."""
    pin = f"sha256:{'00' * 32}"
    with pytest.raises(SetupError):
        Dialer.of(Settings(relay="https://a.example,http://127.0.0.1:1", pin=pin))


async def test_an_issuer_in_between_is_enough(ca: trustme.CA, tmp_path: Path) -> None:
    """--ca-file may contain the authority that issued the relay's certificate, without the one above it."""
    between = ca.create_child_ca()
    between.cert_pem.write_to_path(str(tmp_path / "between.pem"))
    async with _server(between.issue_cert("127.0.0.1")) as server:
        error = await _fails(Dialer(server.url(), trust=Trust(ca_file=str(tmp_path / "between.pem"))))
    assert error.code == "not_a_relay"  # the verification succeeded
