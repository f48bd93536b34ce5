"""What is damaged: small slides of every encoding and layout, results, and an instance fetched in part."""

import json
import shutil
from pathlib import Path

from gateway.slides.phantom import ENCODINGS, write_phantom
from tests.conftest import ROOT
from tests.fuzz.results import write_results

_REAL = ROOT / "tests" / "data" / "cmu_small_he"
_STAMP = "corpus.json"
_LAYOUTS: dict[str, dict[str, object]] = {
    "sparse": {"sparse": True},
    "parts": {"parts": 3},
    "extended": {"offset_table": "extended"},
    "no-table": {"offset_table": "empty"},
    "empty-frames": {"empty_frames": (0, 3)},
}


def corpus(folder: Path) -> Path:
    """The corpus in `folder`, made where it is not there yet: `slides/NAME/*.dcm`, `objects/NAME.dcm`."""
    if (folder / _STAMP).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    slides = folder / "slides"
    for encoding in ENCODINGS:
        _phantom(slides / encoding, encoding=encoding)
    for name, options in _LAYOUTS.items():
        _phantom(slides / name, **options)
    shutil.copytree(_REAL, slides / "cmu", copy_function=shutil.copyfile)
    small = slides / "cmu-small"
    small.mkdir()
    for file in sorted(_REAL.glob("*.dcm"), key=lambda path: path.stat().st_size)[:4]:
        shutil.copyfile(file, small / file.name)
    for file in slides.rglob("*.dcm"):
        file.chmod(0o644)
    objects = folder / "objects"
    objects.mkdir()
    write_results(objects, _REAL)
    (folder / _STAMP).write_text(json.dumps(sorted(path.name for path in slides.iterdir())))
    return folder


def _phantom(folder: Path, **options: object) -> None:
    write_phantom(folder, width_px=700, height_px=520, seed=5, frame_px=128, levels=3, **options)
    (folder / "phantom.json").unlink()


def slide_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "slides").iterdir())


def object_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "objects").iterdir())
