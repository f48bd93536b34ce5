"""Tile features of whole slides, at scale: `python -m training.features`."""
