"""The public pathology encoders, and ours, as data: one card an encoder, one line in registry.toml."""

from training.pathbench.encoders.build import build
from training.pathbench.encoders.cards import read_card, registered
from training.pathbench.encoders.encoder import Batch, Encoder, EncoderMeta
from training.pathbench.encoders.errors import EncoderInvalid, EncoderMissing, LicenceNotAccepted

__all__ = [
    "Batch",
    "Encoder",
    "EncoderInvalid",
    "EncoderMeta",
    "EncoderMissing",
    "LicenceNotAccepted",
    "build",
    "read_card",
    "registered",
]
