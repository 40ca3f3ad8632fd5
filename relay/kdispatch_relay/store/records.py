"""What the store hands out: plain values, no rows and no open transaction."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Identity", "ServiceRecord"]


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A registered service: ``service`` is ``handle/name``, ``access`` is ``public`` or ``token``."""

    service: str
    access: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a token stands for. ``kind`` is the token's prefix; ``service`` is set for ``svc`` tokens only."""

    kind: str
    admin_id: int
    handle: str
    service: ServiceRecord | None = None
