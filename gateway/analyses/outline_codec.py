"""Outlines as bytes, for the file of masks: the arrays one after the other, compressed."""

import struct

import imagecodecs
import numpy as np

from gateway.analyses.mask_file import Damaged
from gateway.reports.spatial import Outlines

_COUNTS = struct.Struct("<3I")
_LEVEL = 3


def packed(outlines: Outlines) -> bytes:
    """The outlines of one block."""
    counts = len(outlines.points_P2), len(outlines.first_G), len(outlines.area_um2_N)
    arrays = (
        outlines.points_P2.astype("<f4"),
        outlines.first_G.astype("<i8"),
        outlines.object_G.astype("<i4"),
        outlines.area_um2_N.astype("<f4"),
        outlines.irregularity_N.astype("<f4"),
        outlines.probability_N.astype("<f4"),
    )
    data = _COUNTS.pack(*counts) + b"".join(array.tobytes() for array in arrays)
    return bytes(imagecodecs.zstd_encode(data, _LEVEL))


def unpacked(data: bytes) -> Outlines:
    """What `packed` was given. Raises Damaged."""
    try:
        return _unpacked(bytes(imagecodecs.zstd_decode(data)))
    except (imagecodecs.ZstdError, struct.error, ValueError):
        raise Damaged from None


def _unpacked(content: bytes) -> Outlines:
    points, rings, objects = _COUNTS.unpack_from(content)
    arrays, at = [], _COUNTS.size
    for kind, count in (
        ("<f4", 2 * points),
        ("<i8", rings),
        ("<i4", rings),
        ("<f4", objects),
        ("<f4", objects),
        ("<f4", objects),
    ):
        arrays.append(np.frombuffer(content, kind, count, at))
        at += arrays[-1].nbytes
    return Outlines(
        points_P2=arrays[0].reshape(-1, 2),
        first_G=arrays[1],
        object_G=arrays[2],
        area_um2_N=arrays[3],
        irregularity_N=arrays[4],
        probability_N=arrays[5],
    )
