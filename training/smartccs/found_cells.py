"""A detector's cells, kept in the runs folder's cache by picture: what was searched once is not searched again,
whatever is asked of its cells later, and a search that was interrupted goes on."""

import io
from collections.abc import Callable

import numpy as np

from gateway.slides.cells import VERSION, Cells
from training.errors import RunInvalid
from training.files import sha256_bytes, write_atomic
from training.runs import Run, runs_folder

_PARTS = ("boxes_N4", "scores_N", "classes_N", "tiles_N")


def kept_cells(run: Run, image_HWC: np.ndarray, mpp: float, find: Callable[[], Cells]) -> Cells:
    """What the detector of a run finds in a picture (H,W,3) uint8 of a scale: from the cache, else what `find` gives.
    Raises RunInvalid where what was kept is damaged."""
    made = sha256_bytes(f"{run.weights_sha256} {run.manifest['recipe_sha256']} {VERSION}".encode())
    folder = runs_folder() / "cache" / f"found-{made[:16]}"
    path = folder / f"{sha256_bytes(image_HWC.tobytes() + repr(mpp).encode())[:32]}.npz"
    if not path.is_file():
        cells, held = find(), io.BytesIO()
        np.savez(held, **{name: getattr(cells, name) for name in _PARTS})
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, held.getvalue())
        return cells
    try:
        with np.load(path) as file:
            return Cells(*(file[name] for name in _PARTS))
    except (OSError, ValueError, KeyError, EOFError):
        raise RunInvalid(f"{path.name} is damaged. Remove it, and its picture is searched anew.") from None
