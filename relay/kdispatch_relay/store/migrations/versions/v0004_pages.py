import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_LISTED = {
    "tokens": {
        "ix_tokens_admin_id_created_at": ["admin_id", "created_at", "token_id"],
        "ix_tokens_service_id_created_at": ["service_id", "created_at", "token_id"],
        "ix_tokens_admin_id_ended_at": ["admin_id", "ended_at"],
    },
    "invites": {"ix_invites_service_id_created_at": ["service_id", "created_at", "token_id"]},
}
# Indexes whose first column is also that of a new one.
_REPLACED = {"tokens": ["ix_tokens_admin_id", "ix_tokens_service_id"], "invites": ["ix_invites_service_id"]}


def upgrade() -> None:
    # PostgreSQL before 18 can only store a computed column; SQLite can add one to an existing table only unstored.
    stored = op.get_bind().dialect.name == "postgresql"
    for table, indexes in _LISTED.items():
        ended = sa.Computed("coalesce(revoked_at, expires_at)", persisted=stored)
        op.add_column(table, sa.Column("ended_at", sa.BigInteger(), ended, nullable=table == "tokens"))
        op.create_index(f"ix_{table}_ended_at", table, ["ended_at"])
        for name, columns in indexes.items():
            op.create_index(name, table, columns)
        for name in _REPLACED[table]:
            op.drop_index(name, table)
    op.create_index("ix_changes_at", "changes", ["at"])
