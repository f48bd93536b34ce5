"""What pulls cost, told to an archive before it has pulled anything."""

import time

from gateway.archive.cache import FrameCache
from gateway.archive.costs import Costs, Sample


def _settled(cache: FrameCache, address: str, *, whole_s: float, frames_s: float) -> None:
    samples = [
        Sample(frames, size, size, frames_s, frames_s if frames else whole_s, time.time())
        for frames in (False, True)
        for size in (1e3, 1e6, 1e9)
    ]
    file = cache.of_archive(address) / "costs.json"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    Costs(tuple(samples)).write(file)


def frames_are_cheap(cache: FrameCache, address: str) -> None:
    """Whole instances take minutes, frames nothing."""
    _settled(cache, address, whole_s=100.0, frames_s=0.01)


def frames_are_dear(cache: FrameCache, address: str) -> None:
    """Frames take minutes, whole instances nothing."""
    _settled(cache, address, whole_s=0.01, frames_s=100.0)
