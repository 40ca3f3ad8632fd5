import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("audit", sa.Column("times", sa.BigInteger(), server_default=sa.text("1"), nullable=False))
    op.add_column("audit", sa.Column("last_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_audit_admin_id_subject_id", "audit", ["admin_id", "subject", "id"])
    op.create_index("ix_audit_admin_id_action_id", "audit", ["admin_id", "action", "id"])
