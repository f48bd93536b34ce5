"""Use-cases: what is done with an order, per slide and per case, and the durable workflow that does it."""
