"""The tables. Live hosts are not among them: they are sessions in memory.

A token's row is found by the SHA-256 digest of its text; the text is never stored. All times are unix seconds.
"""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Admin", "AuditRow", "Base", "Change", "Invite", "Relay", "Service", "Token"]


# SQLite counts up without reuse only in a column of type INTEGER, which has 64 bits there.
_COUNTER = BigInteger().with_variant(Integer(), "sqlite")


def _now() -> int:
    return int(time.time())


# When a token or an invitation ended, or will expire. Migration 0004 stores the column in PostgreSQL and computes it at
# each read in SQLite, so the models leave that open. Both have an index of it.
_ENDED: Final = "coalesce(revoked_at, expires_at)"


class Base(DeclarativeBase):
    """The base class. Constraints have predictable names, so that a migration can change them on every database."""

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
    """An account. A null quota means the relay's default."""

    __tablename__ = "admins"

    id: Mapped[int] = mapped_column(primary_key=True)
    handle: Mapped[str] = mapped_column(String(63), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger, default=_now)
    suspended_at: Mapped[int | None] = mapped_column(BigInteger)
    suspended_for: Mapped[str | None] = mapped_column(String(200))
    max_services: Mapped[int | None]
    max_tokens: Mapped[int | None]
    max_hosts: Mapped[int | None]
    max_streams: Mapped[int | None]


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
    pins: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[int] = mapped_column(BigInteger, default=_now)


class Relay(Base):
    """The relay itself: the only row, which a migration has created."""

    __tablename__ = "relay"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    relay_id: Mapped[str] = mapped_column(String(32))


class Invite(Base):
    """An invitation, by the digest of its code: to host or connect to one service, or to sign up at the relay."""

    __tablename__ = "invites"
    __table_args__ = (
        CheckConstraint("(purpose = 'sign-up') = (service_id IS NULL)", name="service"),
        CheckConstraint("purpose IN ('host', 'connect', 'sign-up')", name="purpose"),
        CheckConstraint("used <= uses", name="used"),
        Index("ix_invites_service_id_created_at", "service_id", "created_at", "token_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    token_id: Mapped[str] = mapped_column(String(16), unique=True)
    service_id: Mapped[int | None] = mapped_column(ForeignKey("services.id", ondelete="CASCADE"))
    purpose: Mapped[str] = mapped_column(String(8))
    name: Mapped[str] = mapped_column(String(63))
    uses: Mapped[int]
    used: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[int] = mapped_column(BigInteger, default=_now)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int] = mapped_column(BigInteger, Computed(_ENDED), index=True)


class Token(Base):
    """A token, by its digest: ``adm`` for its admin, ``svc`` and ``cli`` for one service of that admin.

    ``token_id`` is its public id. ``own`` marks the token that came with its service, and the tokens that rotations put
    in its place. A revoked token stays for a while, so that its holder gets the reason.
    """

    __tablename__ = "tokens"
    __table_args__ = (
        CheckConstraint("(kind = 'adm') = (service_id IS NULL)", name="service"),
        CheckConstraint("kind IN ('adm', 'svc', 'cli')", name="kind"),
        Index("ix_tokens_admin_id_created_at", "admin_id", "created_at", "token_id"),
        Index("ix_tokens_service_id_created_at", "service_id", "created_at", "token_id"),
        Index("ix_tokens_admin_id_ended_at", "admin_id", "ended_at"),
    )

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    token_id: Mapped[str] = mapped_column(String(16), unique=True)
    kind: Mapped[str] = mapped_column(String(3))
    name: Mapped[str] = mapped_column(String(63))
    admin_id: Mapped[int] = mapped_column(ForeignKey("admins.id", ondelete="CASCADE"))
    service_id: Mapped[int | None] = mapped_column(ForeignKey("services.id", ondelete="CASCADE"))
    invite_id: Mapped[int | None] = mapped_column(ForeignKey("invites.id", ondelete="SET NULL"), index=True)
    own: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[int] = mapped_column(BigInteger, default=_now)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger, Computed(_ENDED), index=True)


class Change(Base):
    """A change that may have revoked rights: every relay process on this database checks what rests on them.

    ``scope`` is ``handle/name``, or a handle for everything of its admin. Ids only grow, and become visible in order.
    """

    __tablename__ = "changes"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_COUNTER, primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger, default=_now, index=True)
    scope: Mapped[str] = mapped_column(String(127))


class AuditRow(Base):
    """Who did what to what, from where, when; if merged, also how often and until when.

    ``detail`` is JSON, without secrets. ``last_at`` is null if it happened once.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_admin_id_id", "admin_id", "id"),
        Index("ix_audit_admin_id_subject_id", "admin_id", "subject", "id"),
        Index("ix_audit_admin_id_action_id", "admin_id", "action", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_COUNTER, primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger, default=_now, index=True)
    admin_id: Mapped[int | None] = mapped_column(ForeignKey("admins.id", ondelete="CASCADE"))
    actor: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(200))
    source: Mapped[str] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    times: Mapped[int] = mapped_column(BigInteger, default=1, server_default=text("1"))
    last_at: Mapped[int | None] = mapped_column(BigInteger)
