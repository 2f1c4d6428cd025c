"""Run the migrations on the connection that the caller supplies."""

from alembic import context

from storage.postgres.schema import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
