"""The relay's settings, each defined once: flags, environment variables and pages derive from here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.sources import Networks, networks

__all__ = [
    "LIMITS",
    "LOG_FORMATS",
    "SETTINGS",
    "SIGN_UP",
    "RelaySettings",
    "environment_name",
    "host_of",
    "is_loopback",
]


LOG_FORMATS: Final = ("text", "json")
SIGN_UP: Final = ("open", "code", "closed")

_PERCENTS: Final = ("limit_public_streams", "limit_source_streams")  # of the limits
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """Checked at creation: raises ``bad_request``, or ``plaintext_refused`` for a public address without TLS."""

    listen: str = field(
        default="127.0.0.1:8443", metadata={"help": "Address and port to listen on; port 0 takes a free one."}
    )
    database: str = field(
        default="",
        metadata={"help": "Path of an SQLite file, or URL; without it relay.db in the user's data directory."},
    )
    database_wait: float = field(
        default=5.0, metadata={"help": "Seconds to wait for a lock that another program holds on the database."}
    )
    tls_cert: Path | None = field(
        default=None, metadata={"help": "Certificate file (PEM, with the chain) to serve HTTPS directly."}
    )
    tls_key: Path | None = field(default=None, metadata={"help": "Private key file (PEM) of the certificate."})
    insecure_plaintext: bool = field(
        default=False, metadata={"help": "Serve plain HTTP on a public address, where every token is readable."}
    )

    trusted_proxy: str = field(
        default="",
        metadata={"help": "Addresses and networks of proxies whose X-Forwarded-For is trusted, separated by commas."},
    )
    allowed_host: str = field(
        default="",
        metadata={
            "help": "Host names (in the Host header) that the relay answers to, separated by commas; empty for any."
        },
    )

    reuse_port: bool = field(
        default=False,
        metadata={"help": "Share the port with a running relay of the same user, and get all new connections (Linux)."},
    )
    drain_time: float = field(
        default=8.0,  # Docker, Podman and supervisord kill 10 s after SIGTERM
        metadata={
            "help": "Seconds that agents have after SIGTERM to move to another relay; 0 ends their sessions at once."
        },
    )
    sign_up: str = field(
        default="open",
        metadata={
            "help": "Who may take a handle: open (everyone), code (those with the operator's code), closed (no one)."
        },
    )
    limit_sign_ups: int = field(
        default=10, metadata={"help": "Handles that one source may take in an hour; 0 or off: no limit."}
    )
    limit_bad_tokens: int = field(
        default=10,
        metadata={"help": "Of a source's invalid tokens in a minute, this and later ones are refused unread; or off."},
    )
    limit_requests: int = field(
        default=50,
        metadata={"help": "REST requests a second for each source and each token; four times as many at once; or off."},
    )
    limit_failed_opens: int = field(
        default=400,
        metadata={"help": "OPENs, OFFERs and ATTACHes of a source that may fail a second; five times at once; or off."},
    )
    limit_idle_frames: int = field(
        default=4_000,
        metadata={"help": "Frames of a source without effect, like PINGs, a second; five times at once; or off."},
    )
    limit_asking: int = field(
        default=4_000,
        metadata={
            "help": "OPENs, OFFERs and ATTACHes of a source a second, at once a fifth; more are read slower; or off."
        },
    )
    limit_source_sessions: int = field(
        default=2_000,
        metadata={"help": "Sessions that one source may have, and may begin in 10 s (at once twice as many); or off."},
    )
    limit_sessions: int = field(
        default=20_000,
        metadata={"help": "Sessions in total, at most three quarters of the file descriptors; or off."},
    )

    limit_public_streams: int = field(
        default=75,
        metadata={"help": "Percent of an account's streams that its public services may have together; or off."},
    )
    limit_source_streams: int = field(
        default=50,
        metadata={"help": "Percent of those that one source may have, of what other sources leave free; or off."},
    )

    operator_token_file: Path | None = field(
        default=None,
        metadata={"help": "File with the token that shows the relay's state to the operator on other machines."},
    )

    audit_days: int = field(default=90, metadata={"help": "Days for which the audit is kept."})

    log_format: str = field(default="text", metadata={"help": "Form of the log on stderr: text or json."})
    verbose: bool = field(default=False, metadata={"help": "Log each session's begin and end, and each stream's end."})

    def __post_init__(self) -> None:
        _refuse_blank({item.name: getattr(self, item.name) for item in fields(self)})
        if (self.tls_cert is None) != (self.tls_key is None):
            raise KdispatchError("bad_request", "A TLS certificate and its key belong together: give both, or neither.")
        if self.log_format not in LOG_FORMATS:
            raise KdispatchError("bad_request", f"The log format is text or json, not {self.log_format[:20]!r}.")
        if self.database_wait <= 0:
            raise KdispatchError("bad_request", "The time to wait for the database must be more than 0 seconds.")
        if self.audit_days < 1:
            raise KdispatchError("bad_request", "The audit is kept for 1 day or more.")
        if self.sign_up not in SIGN_UP:
            raise KdispatchError("bad_request", f"Sign-up is open, code or closed, not {self.sign_up[:20]!r}.")
        for name in LIMITS:
            if getattr(self, name) < 0:
                raise KdispatchError("bad_request", f"--{name.replace('_', '-')} must be 0, off, or more than 0.")
        for name in _PERCENTS:
            if getattr(self, name) > 100:
                raise KdispatchError("bad_request", f"--{name.replace('_', '-')} is a percentage: at most 100.")
        if self.drain_time < 0:
            raise KdispatchError("bad_request", "The drain time must be 0 seconds or more.")
        self.check_address(self.address[0], self.listen)
        _ = self.trusted_proxies, self.allowed_hosts

    def check_address(self, host: str, where: str) -> None:
        """Raise ``plaintext_refused`` if listening at ``host`` would expose tokens. The message contains ``where``."""
        if self.tls_cert is None and not self.insecure_plaintext and not is_loopback(host):
            raise KdispatchError(
                "plaintext_refused",
                f"{where} can be reached from other machines, and plain HTTP shows every token on the way. "
                "Give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that speaks HTTPS.",
            )

    @property
    def trusted_proxies(self) -> Networks:
        """The networks of ``trusted_proxy``."""
        return networks(self.trusted_proxy)

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """The names of ``allowed_host``, in lower case."""
        names = frozenset(host_of(name.strip()) for name in self.allowed_host.split(",") if name.strip())
        if "" in names:
            raise KdispatchError("bad_request", "An allowed host is a name or an address, without scheme and path.")
        return names

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of ``listen``; an IPv6 host without its brackets."""
        host, _, port = self.listen.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not host or bracketed != (":" in host) or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            text = f"{self.listen[:80]!r} is not HOST:PORT, like 127.0.0.1:8443 or [::1]:8443."
            raise KdispatchError("bad_request", text)
        return host, int(port)


#: The settings that limit a number or a percentage, where 0 means no limit.
LIMITS: Final = tuple(item.name for item in fields(RelaySettings) if item.name.startswith("limit_"))

#: Every setting by name. ``default`` and ``metadata["help"]`` describe it.
SETTINGS: Final[Mapping[str, Field[Any]]] = {item.name: item for item in fields(RelaySettings)}


def _refuse_blank(values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if isinstance(value, str | Path) and str(value) and not str(value).strip():
            text = f"--{name.replace('_', '-')} (or {environment_name(name)}) is blank."
            raise KdispatchError("bad_request", text)


def environment_name(name: str) -> str:
    """The environment variable of a setting."""
    return f"KDISPATCH_SERVE_{name.upper()}"


def host_of(header: str) -> str:
    """The host of a ``Host`` header in lower case, without port, brackets and final dot; empty if it is invalid."""
    found = _HOST.fullmatch(header)
    return "" if found is None else (found[1] or found[2]).rstrip(".").lower()


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name may lead anywhere
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
