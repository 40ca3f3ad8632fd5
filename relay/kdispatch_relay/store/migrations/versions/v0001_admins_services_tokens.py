import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "admins",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("handle", sa.String(63), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admins")),
        sa.UniqueConstraint("handle", name=op.f("uq_admins_handle")),
    )
    op.create_table(
        "services",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("access", sa.String(8), server_default="public", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_services")),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["admins.id"], name=op.f("fk_services_owner_id_admins"), ondelete="CASCADE"
        ),
        sa.UniqueConstraint("owner_id", "name", name=op.f("uq_services_owner_id_name")),
        sa.CheckConstraint("access IN ('public', 'token')", name=op.f("ck_services_access")),
    )
    op.create_table(
        "tokens",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("kind", sa.String(3), nullable=False),
        sa.Column("admin_id", sa.Integer(), nullable=False),
        sa.Column("service_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_tokens")),
        sa.ForeignKeyConstraint(
            ["admin_id"], ["admins.id"], name=op.f("fk_tokens_admin_id_admins"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["service_id"], ["services.id"], name=op.f("fk_tokens_service_id_services"), ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "(kind = 'adm' AND service_id IS NULL) OR (kind = 'svc' AND service_id IS NOT NULL)",
            name=op.f("ck_tokens_kind"),
        ),
    )
    op.create_index(op.f("ix_tokens_admin_id"), "tokens", ["admin_id"])
    op.create_index(op.f("ix_tokens_service_id"), "tokens", ["service_id"])
