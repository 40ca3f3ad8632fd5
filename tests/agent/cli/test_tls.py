"""Real certificates, made by the openssl command, with the real console script."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.cli.fake_relay import FakeRelay, Shell, new_token

pytestmark = pytest.mark.slow  # each test starts several processes

CONFIG = """
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
x509_extensions = signed
[signed]
authorityKeyIdentifier = keyid
[any]
commonName = supplied
"""

CASES = {
    "good": ("localhost", "20200101000000Z", "20991231000000Z"),
    "expired": ("localhost", "20200101000000Z", "20200102000000Z"),
    "early": ("localhost", "20980101000000Z", "20991231000000Z"),
    "other": ("other.example", "20200101000000Z", "20991231000000Z"),
}


def certificate(folder: Path, name: str, host: str, start: str, end: str) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    if name == "ca":
        # Python 3.13 requires key usages of an authority, and key identifiers in its certificates.
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl("req", "-x509", *new_key, *usage, "-subj", f"/CN={host}", "-days", "9999", "-out", "ca.pem")
        return
    extension = f"subjectAltName=DNS:{host}"
    openssl("req", *new_key, "-subj", f"/CN={host}", "-addext", extension, "-out", f"{name}.csr")
    signing = ["-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-startdate", start, "-enddate", end]
    openssl("ca", "-batch", "-notext", *signing, "-in", f"{name}.csr", "-out", f"{name}.pem")


@pytest.fixture
async def relays(tmp_path: Path) -> AsyncIterator[dict[str, FakeRelay]]:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed: no certificates to test with")
    (tmp_path / "ca.cnf").write_text(CONFIG)
    (tmp_path / "index.txt").touch()
    certificate(tmp_path, "ca", "Test CA", "", "")
    runners, fakes = [], {}
    for name, (host, start, end) in CASES.items():
        certificate(tmp_path, name, host, start, end)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        fakes[name] = FakeRelay()
        runners.append(await fakes[name].start(context))
    yield fakes
    for runner in runners:
        await runner.cleanup()


async def test_each_fault_of_a_certificate_has_its_code(
    relays: dict[str, FakeRelay], kdispatch: Shell, tmp_path: Path
) -> None:
    """Unknown CA, wrong host, expired and not yet valid end with 6 and their reason; no request is sent."""
    token, ca = new_token("adm"), str(tmp_path / "ca.pem")
    relays["good"].handles[token] = "ann"

    async def whoami(name: str, **environment: str) -> tuple[int, str]:
        address = relays[name].url.replace("127.0.0.1", "localhost")
        ended = await kdispatch("whoami --quiet --relay", address, KDISPATCH_TOKEN=token, **environment)
        return ended.status, ended.out.strip() or ended.code

    ended = await asyncio.gather(
        whoami("good", SSL_CERT_FILE=ca),
        whoami("good"),
        whoami("expired", SSL_CERT_FILE=ca),
        whoami("early", SSL_CERT_FILE=ca),
        whoami("other", SSL_CERT_FILE=ca),
    )
    assert list(ended) == [
        (0, "ann"),
        (6, "tls_unknown_ca"),
        (6, "tls_expired"),
        (6, "tls_not_yet_valid"),
        (6, "tls_wrong_host"),
    ]
    assert [relay.seen for name, relay in relays.items() if name != "good"] == [[], [], []]
    assert len(relays["good"].seen) == 1
