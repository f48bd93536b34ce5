"""Alembic's entry: it migrates the connection that `Ledger.open` hands over, and nothing else."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
