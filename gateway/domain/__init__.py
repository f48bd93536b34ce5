"""Frozen value types of the domain. Imports nothing of ours; encodings live at the rim."""
