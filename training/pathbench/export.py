"""What the bench's runs serve: registered encoders."""

from training.pathbench.encoders.served import declare

__all__ = ["declare"]
