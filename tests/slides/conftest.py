"""Slides that the tests of this folder share: small phantoms and the real slide of the repository."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gateway.slides import Slide
from gateway.slides.phantom import PhantomTruth, write_phantom
from gateway.slides.slide import LevelImage

REAL_SLIDE = Path(__file__).parents[1] / "data" / "cmu_small_he"


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomTruth:
    """A phantom of 2,100 × 1,500 pixels: several levels, edges that no tile size divides."""
    return write_phantom(tmp_path_factory.mktemp("phantom"), width_px=2100, height_px=1500, seed=3)


@pytest.fixture
def slide(phantom: PhantomTruth):
    with Slide.open(phantom.files) as opened:
        yield opened


@pytest.fixture(scope="session")
def make_phantom(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PhantomTruth]:
    """Phantoms with the given options, made once each."""
    made: dict[str, PhantomTruth] = {}

    def make(width_px: int = 1100, height_px: int = 800, **options: object) -> PhantomTruth:
        key = repr((width_px, height_px, sorted(options.items())))
        if key not in made:
            made[key] = write_phantom(
                tmp_path_factory.mktemp("made"), width_px=width_px, height_px=height_px, **options
            )
        return made[key]

    return make


@pytest.fixture
def real_files() -> list[Path]:
    """The CMU small region: JPEG in RGB with an Adobe marker, and levels whose header says RGB over YCbCr streams."""
    return sorted(REAL_SLIDE.glob("*.dcm"))


@pytest.fixture
def note_frames(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Call it to have the numbers of all frames that are read from then on, in the order of reading."""

    def begin() -> list[int]:
        read: list[int] = []
        lock = threading.Lock()
        original = LevelImage.read_frames

        def noting(self: LevelImage, frames: Sequence[int]) -> list[memoryview]:
            with lock:
                read.extend(frames)
            return original(self, frames)

        monkeypatch.setattr(LevelImage, "read_frames", noting)
        return read

    return begin
