"""Alembic migrations of the ledger, run at every start (see `Ledger.open`)."""
