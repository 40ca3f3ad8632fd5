"""The tables. Live hosts are not among them: they are sessions in memory.

A token's row is found by the SHA-256 digest of its text; the text is never stored.
"""

from __future__ import annotations

import time

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, LargeBinary, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Admin", "Base", "Relay", "Service", "Token"]


def _now() -> int:
    return int(time.time())


class Base(DeclarativeBase):
    """Constraints have predictable names, so that a migration can drop or change them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Admin(Base):
    """An account. ``created_at`` is in unix seconds, here and below."""

    __tablename__ = "admins"

    id: Mapped[int] = mapped_column(primary_key=True)
    handle: Mapped[str] = mapped_column(String(63), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger, default=_now)


class Service(Base):
    """A service of one admin; its public identifier is ``handle/name``."""

    __tablename__ = "services"
    __table_args__ = (
        UniqueConstraint("owner_id", "name"),
        CheckConstraint("access IN ('public', 'token')", name="access"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("admins.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(63))
    access: Mapped[str] = mapped_column(String(8), default="public", server_default="public")
    created_at: Mapped[int] = mapped_column(BigInteger, default=_now)


class Relay(Base):
    """The relay itself, in the one row that a migration has made."""

    __tablename__ = "relay"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    relay_id: Mapped[str] = mapped_column(String(32))


class Token(Base):
    """What a token may do, under its digest: ``adm`` for its admin, ``svc`` for one service of that admin."""

    __tablename__ = "tokens"
    __table_args__ = (
        CheckConstraint("(kind = 'adm' AND service_id IS NULL) OR (kind = 'svc' AND service_id IS NOT NULL)", "kind"),
    )

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(3))
    admin_id: Mapped[int] = mapped_column(ForeignKey("admins.id", ondelete="CASCADE"), index=True)
    service_id: Mapped[int | None] = mapped_column(ForeignKey("services.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger, default=_now)
