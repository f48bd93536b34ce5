"""GPFM: one student that learns from its own teacher and from several frozen experts (arXiv 2407.18449)."""
