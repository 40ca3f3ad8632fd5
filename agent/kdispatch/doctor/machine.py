"""Checks of this machine, without network: files, stored tokens, the local port, the descriptor limit."""

from __future__ import annotations

import importlib
import shlex
import stat
from pathlib import Path
from typing import Any, Final

from kdispatch.addresses import place
from kdispatch.credentials import CREDENTIALS_FILE, Credentials
from kdispatch.doctor.findings import Finding, failed, fails, ok, warns
from kdispatch.local.port import is_open
from kdispatch.local.sockets import reason
from kdispatch.machine.operating_system import HERE
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import CONFIG_FILE, Settings, config_directory, state_directory
from kdispatch_protocol.errors import CODES, KdispatchError

__all__ = ["check_config", "check_credentials", "check_descriptors", "check_files", "check_port"]

#: With fewer files an agent runs out of them at a few dozen connections.
_FEW_FILES: Final = 256
#: Files that an agent needs for itself; each connection takes one more.
_OWN_FILES: Final = 32
_PORT_SECONDS: Final = 4.0


def check_config(settings: Settings) -> list[Finding]:
    """Check the source of the settings, and the relay that they name."""
    path = config_directory() / CONFIG_FILE
    relays = settings.relay_urls
    source = str(path) if path.exists() else f"no {path}, so flags and environment alone"
    text = f"{', '.join(map(str, relays))} ({source})"
    if any(not (relay.secure or relay.is_loopback) for relay in relays):
        hint = "Use the relay's https:// address."
        return [warns("config", f"{text}: plain http, which everyone on the network path can read.", hint, hop="you")]
    return [ok("config", text)]


def check_files(settings: Settings) -> list[Finding]:
    """Check who may read the files with secrets."""
    directory = config_directory()
    secret = [directory / CREDENTIALS_FILE]
    if "@" in settings.proxy:
        secret.append(directory / CONFIG_FILE)
    if settings.client_cert:
        secret.append(Path(settings.client_key or settings.client_cert))
    findings = []
    for path in (*secret, state_directory() / "agents"):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            text = f"{path} can't be looked at: {error.strerror or error}."
            findings.append(fails("files", text, "Check its owner and mode.", hop="you"))
            continue
        if HERE.others_may_use(mode):
            found = f"{path} may be used by others on this machine (mode {stat.S_IMODE(mode):04o})."
            hint = f"chmod {'700' if stat.S_ISDIR(mode) else '600'} {shlex.quote(str(path))}"
            findings.append(fails("files", found, hint, hop="you"))
    return findings or [ok("files", f"only this user can use the secrets in {directory}")]


def check_credentials(relay: RelayUrl, given: str | None) -> list[Finding]:
    """List the stored tokens. Another check tests whether the relay accepts them."""
    credentials = Credentials()
    try:
        handles, services = credentials.handles(relay), credentials.services(relay)
    except KdispatchError as error:
        return [failed("credentials", error)]
    stored = [*(f"{handle} (admin)" for handle in handles), *(f"{service} (service)" for service in services)]
    if given is not None:
        return [ok("credentials", f"a token is given by flag or environment; stored: {', '.join(stored) or 'none'}")]
    if not stored:
        return [ok("credentials", "none for this relay; to connect to a public service none is needed")]
    return [ok("credentials", ", ".join(stored))]


async def check_port(address: str, port: int) -> list[Finding]:
    """Check whether the service to be offered listens."""
    row = CODES["local_port_closed"]
    text = f"Nothing listens on {place(address, port)}."
    try:
        if await is_open(address, port, _PORT_SECONDS):
            return [ok("local port", f"something listens on {place(address, port)}")]
    except OSError as error:
        text = f"It is unknown whether anything listens on {place(address, port)}: {reason(error)}."
    return [fails("local port", text, row.hint, hop=row.hop, code=row.name)]


def check_descriptors() -> list[Finding]:
    """Check how many files, and so connections, a process may have open."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows has no such limit
        return [ok("descriptors", "this system has no limit on them")]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return [ok("descriptors", "no limit on open files")]
    text = f"{soft} open files a process, so about {max(0, soft - _OWN_FILES)} connections of an agent"
    if soft < _FEW_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        return [warns("descriptors", f"{text}.", f"ulimit -n {most}, before the agent is started", hop="you")]
    return [ok("descriptors", text)]
