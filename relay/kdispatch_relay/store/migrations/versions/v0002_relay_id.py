import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    relay = op.create_table(
        "relay",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("relay_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_relay")),
        sa.CheckConstraint("id = 1", name=op.f("ck_relay_one")),
    )
    op.bulk_insert(relay, [{"id": 1, "relay_id": secrets.token_hex(16)}])
