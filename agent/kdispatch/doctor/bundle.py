"""A file for support requests: findings, versions, settings and logs, without secrets."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import ssl
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from kdispatch.credentials import CREDENTIALS_FILE
from kdispatch.doctor.findings import Finding
from kdispatch.doctor.redaction import clean, without_credentials
from kdispatch.machine.private_files import open_private
from kdispatch.machine.records import agents_directory
from kdispatch.settings import ENVIRONMENT, Settings, config_directory, setting_of, version
from kdispatch.setup_error import SetupError

__all__ = ["write_bundle"]

_LOGS: Final = 10  # the newest logs
_LOG_BYTES: Final = 256 * 1024  # from the end of each
_PACKAGES: Final = (
    "aiohappyeyeballs", "aiohttp", "platformdirs", "python-socks", "structlog", "truststore", "typer", "uvloop",
    "websockets",
)  # fmt: skip
#: Variables of other programs that matter here.
_VARIABLES: Final = (
    "HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "LANG",
)  # fmt: skip
#: Variables whose address may contain a user name and a password.
_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy", "KDISPATCH_PROXY")
_SECRET: Final = "KDISPATCH_TOKEN"  # noqa: S105 - the name of a variable


def write_bundle(
    path: Path, findings: Sequence[Finding], settings: Settings | None, token: str | None, width: int
) -> list[str]:
    """Write the file, readable by this user only; returns the names in it. Raises ``SetupError``."""
    secrets = set(_secrets(settings, token))

    def cleaned(content: Any) -> str:
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        return clean(text, secrets)

    parts: dict[str, str] = {
        "findings.json": cleaned([finding.as_dict() for finding in findings]),
        "findings.txt": cleaned("".join(f"{line}\n" for finding in findings for line in finding.lines(width))),
        "versions.json": cleaned(_versions()),
        "settings.json": cleaned(_settings(settings)),
        "environment.json": cleaned(_environment()),
    }
    parts |= {f"logs/{log.name}": cleaned(_end_of(log)) for log in _logs()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in parts.items():
            bundle.writestr(name, text)
    try:
        path.unlink(missing_ok=True)  # an existing file would keep its mode, and others may be able to read it
        descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
    except OSError as error:
        text = f"{path} cannot be written: {error.strerror or error}."
        raise SetupError("bad_request", text, hint="Name a file in a directory of yours.") from error
    return list(parts)


def _secrets(settings: Settings | None, token: str | None) -> Iterable[str]:
    """Texts to remove everywhere: tokens, and what precedes the ``@`` in proxy addresses."""
    yield token or ""
    yield os.environ.get(_SECRET, "")
    for address in (*((settings.proxy,) if settings else ()), *map(os.environ.get, _PROXIES)):
        before, at, _ = (address or "").rpartition("@")
        if at:
            credentials = before.rpartition("://")[2]
            user, _, password = credentials.partition(":")
            for secret in (credentials, password or user, unquote(password or user)):
                yield from (secret, json.dumps(secret)[1:-1])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        content = json.loads((config_directory() / CREDENTIALS_FILE).read_bytes())
        for entry in content.get("relays", {}).values():
            for kind in ("admins", "services", "clients"):
                yield from map(str, entry.get(kind, {}).values())


def _versions() -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "kdispatch": version(),
        "python": sys.version,
        "platform": platform.platform(),
        "openssl": ssl.OPENSSL_VERSION,
        "packages": packages,
    }


def _settings(settings: Settings | None) -> dict[str, Any]:
    if settings is None:
        return {}
    return dataclasses.asdict(settings) | {"proxy": without_credentials(settings.proxy)}


def _environment() -> dict[str, Any]:
    ours = [*ENVIRONMENT, *(setting_of(field.name).env for field in dataclasses.fields(Settings))]
    values = {name: os.environ[name] for name in (*_VARIABLES, *ours) if name in os.environ and name != _SECRET}
    values |= {name: without_credentials(values[name]) for name in _PROXIES if name in values}
    return values | {f"{_SECRET} is set": _SECRET in os.environ}


def _logs() -> list[Path]:
    with contextlib.suppress(OSError):
        logs = [path for path in agents_directory().iterdir() if path.name.endswith((".log", ".log.1"))]
        return sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True)[:_LOGS]
    return []


def _end_of(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        return file.read().decode(errors="replace")
    return ""
