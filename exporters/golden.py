"""golden.npz: inputs with an engine's answers to them, by which every server proves the engine before it serves."""

import io

import numpy as np

from training.graphs import Arrays

_EXPECTED = "expected."
_MANY, _STEP = 1 << 18, 2.0**-12
"""Answers of so many numbers or more are kept in such steps, an eighth of the tolerance away at most: what is below
differs from machine to machine, and would be half of a large file."""


def pack(inputs: Arrays, answers: Arrays) -> bytes:
    """The file's bytes; numpy writes a fixed date into it, so equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **inputs, **{f"{_EXPECTED}{name}": _kept(array) for name, array in answers.items()})
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[Arrays, Arrays]:
    """Inputs and answers of a file that `pack` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = dict(archive)
    answers = {name.removeprefix(_EXPECTED): array for name, array in arrays.items() if name.startswith(_EXPECTED)}
    return {name: array for name, array in arrays.items() if not name.startswith(_EXPECTED)}, answers


def _kept(answer: np.ndarray) -> np.ndarray:
    if answer.size < _MANY or answer.dtype.kind != "f":
        return answer
    return (np.round(answer / _STEP) * _STEP).astype(answer.dtype)
