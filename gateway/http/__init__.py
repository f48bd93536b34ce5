"""The REST API: one router a resource, thin. Reads and writes the ledger; never decodes, never runs a model."""
