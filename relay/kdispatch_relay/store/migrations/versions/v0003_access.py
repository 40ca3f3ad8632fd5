import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("admins") as admins:
        admins.add_column(sa.Column("suspended_at", sa.BigInteger(), nullable=True))
        admins.add_column(sa.Column("suspended_for", sa.String(200), nullable=True))
        for quota in ("max_services", "max_tokens", "max_hosts", "max_streams"):
            admins.add_column(sa.Column(quota, sa.Integer(), nullable=True))
    with op.batch_alter_table("services") as services:
        services.add_column(sa.Column("pins", sa.Boolean(), server_default=sa.false(), nullable=False))
    _invites()
    _tokens()
    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # its INTEGER has 64 bits
    op.create_table(
        "changes",
        sa.Column("id", counter, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("scope", sa.String(127), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", counter, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("admin_id", sa.Integer(), nullable=True),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sa.ForeignKeyConstraint(["admin_id"], ["admins.id"], name=op.f("fk_audit_admin_id_admins"), ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_admin_id_id"), "audit", ["admin_id", "id"])
    op.create_index(op.f("ix_audit_at"), "audit", ["at"])


def _invites() -> None:
    op.create_table(
        "invites",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("token_id", sa.String(16), nullable=False),
        sa.Column("service_id", sa.Integer(), nullable=True),
        sa.Column("purpose", sa.String(8), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invites")),
        sa.UniqueConstraint("digest", name=op.f("uq_invites_digest")),
        sa.UniqueConstraint("token_id", name=op.f("uq_invites_token_id")),
        sa.ForeignKeyConstraint(
            ["service_id"], ["services.id"], name=op.f("fk_invites_service_id_services"), ondelete="CASCADE"
        ),
        sa.CheckConstraint("(purpose = 'sign-up') = (service_id IS NULL)", name=op.f("ck_invites_service")),
        sa.CheckConstraint("purpose IN ('host', 'connect', 'sign-up')", name=op.f("ck_invites_purpose")),
        sa.CheckConstraint("used <= uses", name=op.f("ck_invites_used")),
    )
    op.create_index(op.f("ix_invites_service_id"), "invites", ["service_id"])


def _tokens() -> None:
    with op.batch_alter_table("tokens") as tokens:
        tokens.drop_constraint(op.f("ck_tokens_kind"), type_="check")
        tokens.add_column(sa.Column("token_id", sa.String(16), nullable=True))
        tokens.add_column(sa.Column("name", sa.String(63), server_default="", nullable=False))
        tokens.add_column(sa.Column("invite_id", sa.Integer(), nullable=True))
        tokens.add_column(sa.Column("own", sa.Boolean(), server_default=sa.false(), nullable=False))
        for moment in ("expires_at", "last_used_at", "revoked_at"):
            tokens.add_column(sa.Column(moment, sa.BigInteger(), nullable=True))
    _name_those_there_are()
    with op.batch_alter_table("tokens") as tokens:
        tokens.alter_column("token_id", existing_type=sa.String(16), nullable=False)
        tokens.alter_column("name", existing_type=sa.String(63), existing_nullable=False, server_default=None)
        tokens.create_unique_constraint(op.f("uq_tokens_token_id"), ["token_id"])
        tokens.create_foreign_key(
            op.f("fk_tokens_invite_id_invites"), "invites", ["invite_id"], ["id"], ondelete="SET NULL"
        )
        tokens.create_check_constraint(op.f("ck_tokens_service"), "(kind = 'adm') = (service_id IS NULL)")
        tokens.create_check_constraint(op.f("ck_tokens_kind"), "kind IN ('adm', 'svc', 'cli')")
        tokens.create_index(op.f("ix_tokens_invite_id"), ["invite_id"])


def _name_those_there_are() -> None:
    tokens = sa.table(
        "tokens", sa.column("digest"), sa.column("kind"), sa.column("token_id"), sa.column("name"), sa.column("own")
    )
    bind = op.get_bind()
    for digest, kind in bind.execute(sa.select(tokens.c.digest, tokens.c.kind)).all():
        values = {
            "token_id": hashlib.sha256(digest).hexdigest()[:16],
            "name": "sign-up" if kind == "adm" else "service",
            "own": kind == "svc",
        }
        bind.execute(tokens.update().where(tokens.c.digest == digest).values(values))
