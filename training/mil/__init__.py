"""Slide heads: one answer for a bag of tile embeddings."""
