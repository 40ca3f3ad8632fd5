# Alembic runs this file for every upgrade. The caller provides the connection, its transaction and the lock around it.
from alembic import context

from kdispatch_relay.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
