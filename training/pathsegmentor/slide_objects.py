"""What objects mean to the slides' model, as `pathserve analyze --protocol slide-classification --prompt …` serves it,
over real slides and over slides composed of labelled tiles.

    python -m training.pathsegmentor.slide_objects ../shared/data/slides/{cmu_small_he,metaplasia_he} \
        --composed 6 --work ../runs/slide-objects --out docs/results/pathsegmentor/slide_objects.json

Masks, blur, random areas and losses are the gateway's; here they are only gathered. A composed slide is a square of
tiles of the set that the slides' model learned from, the only one whose labels are known: what it says of it is in
sample, and no real slide's. A report that lies in the work folder is not made again where it is of the models that are
served.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gateway.domain.codes import Code
from gateway.domain.prompts import Level, Triple
from gateway.operations.settings import settings
from gateway.slides.phantom import ENCODINGS
from gateway.slides.phantom_dicom import Identity, LevelFile, write_level
from training import command
from training.data import crc9
from training.data.common import data_root, read_image
from training.data.views import VIEWS, view
from training.errors import RunInvalid
from training.files import json_bytes, write_atomic
from training.pathsegmentor.object_mil import importance
from training.pathsegmentor.pairs import FEWEST_GROUPS, mean
from training.runs import read_json

PROMPTS = (
    Triple(Level.NUCLEI, "nucleus", "colon"),
    Triple(Level.NUCLEI, "epithelial", "colon"),
    Triple(Level.TISSUE, "gland", "colon"),
)
TUMOUR = "colorectal adenocarcinoma epithelium"
SETTINGS = {"explain.tiles": 8, "explain.repeats": 10}
_DRAWS = "pathseg_image"
"""The served model whose weights drew the masks."""
_SIDE, _TILE_PX, _MPP, _LEVELS = 6, 224, 0.5, 3
"""Tiles along a composed slide's side; of a tile; of the finest of its levels, each half as wide as the one before."""
_SHARE = (0.2, 0.6)
"""Of tumour's tiles in a slide that has it."""
_SEED = 2026


def compose(folder: Path, number: int) -> bool:
    """Write slide `number` of the composed ones into a new folder; whether it has tumour, as every other one does."""
    dataset, rng = crc9.load(), np.random.default_rng((_SEED, number))
    tumour_N = dataset.labels_N == crc9.CLASSES.index(TUMOUR)
    count = _SIDE**2
    targets = round(rng.uniform(*_SHARE) * count) if number % 2 else 0
    chosen = [
        *rng.choice(np.flatnonzero(tumour_N), targets),
        *rng.choice(np.flatnonzero(~tumour_N), count - targets),
    ]
    tiles = [
        view(read_image(data_root(), dataset.sources[place]), int(rng.integers(VIEWS["orientations"])), rng)
        for place in rng.permutation(chosen)
    ]
    picture = np.vstack([np.hstack(tiles[row * _SIDE : (row + 1) * _SIDE]) for row in range(_SIDE)])
    identity = Identity().completed(f"composed-{number}", "he", None, Code("71854001", "SCT", "Colon"))
    folder.mkdir(parents=True)
    for index in range(_LEVELS):
        _write(folder, identity, index, picture)
        picture = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return bool(targets)


def _write(folder: Path, identity: Identity, index: int, picture_HW3: np.ndarray) -> None:
    height, width = picture_HW3.shape[:2]
    level = LevelFile(
        index=index,
        width_px=width,
        height_px=height,
        spacing_mm=_MPP * 2**index / 1000,
        frame_px=_TILE_PX,
        encoding=ENCODINGS["uncompressed"],
        compression_ratio=1.0,
    )
    down, right = -height % _TILE_PX, -width % _TILE_PX
    whole = cv2.copyMakeBorder(picture_HW3, 0, down, 0, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    rows = (
        [whole[top : top + _TILE_PX, left : left + _TILE_PX].tobytes() for left in range(0, whole.shape[1], _TILE_PX)]
        for top in range(0, whole.shape[0], _TILE_PX)
    )
    write_level(folder, identity, level, rows)


def explained(pathserve: Path, slide: Path, out: Path) -> dict[str, Any]:
    """What the report of one slide says of its class and of the objects; made by `pathserve analyze` where none of the
    models that are served lies in `out` yet. Raises RunInvalid with what the program says where it fails."""
    report = out / "report.json"
    if report.is_file() and not is_current(json.loads(report.read_text())["models"]):
        shutil.rmtree(out)
    if not report.is_file():
        asked = [word for prompt in PROMPTS for word in ("--prompt", prompt.text)]
        chosen = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        done = subprocess.run(
            [
                pathserve,
                "analyze",
                "--protocol",
                "slide-classification",
                "--slide",
                slide,
                "--out",
                out,
                *asked,
                *chosen,
            ],
            env=os.environ | {"PATHSERVE_STATE": str(out.parent / "state")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunInvalid(
                f"The analysis of {slide.name} failed: {(done.stderr.strip() or 'no word').splitlines()[-1]}"
            )
    content = json.loads(report.read_text())
    (said,) = content["slide_classes"]
    told = said["explanation"]
    return {
        "weights_sha256": next(model["weights_sha256"] for model in content["models"] if model["name"] == _DRAWS),
        "classes": [entry["probability"] for entry in said["classes"]],
        "target": said["classes"][told["target"]]["code"]["display"],
        "exploratory": said["exploratory"],
        **{key: told[key] for key in ("loss", "tiles", "weight_share", "repeats")},
        "bag": said["bag"],
        "objects": {
            entry["triple"]: {
                key: entry[key] for key in ("val_dice", "tiles", "area_share", "weight_share", "importance")
            }
            for entry in told["objects"]
        },
    }


def is_current(models: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all models that a report names have the weights that are served now."""
    repository = settings().model_repository
    served = {path.parent.name: read_json(path.parent, path.name) for path in repository.glob("*/card.json")}
    return all(
        model["name"] in served and model["weights_sha256"] == served[model["name"]]["digests"]["weights_sha256"]
        for model in models
    )


def drawn_by(slides: Sequence[Mapping[str, Any]]) -> str:
    """The digest of the weights that drew the masks of all slides. Raises RunInvalid where they are not one's."""
    digests = {slide["weights_sha256"] for slide in slides}
    if len(digests) != 1:
        raise RunInvalid("The masks of the slides are of several models, or of none. Run the command again.")
    return str(digests.pop())


def over_slides(slides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By object, over the slides on which it was found: the mean loss with it blurred over the mean loss before, the
    same of random areas, and their difference, with intervals over slides; {} for fewer than `FEWEST_GROUPS` slides."""
    found = {}
    for prompt in PROMPTS:
        held = [slide for slide in slides if slide["objects"][prompt.text]["importance"] is not None]
        if len(held) < FEWEST_GROUPS:
            found[prompt.text] = {"slides": len(held)}
            continue
        loss_S = np.array([slide["loss"] for slide in held])
        told = [slide["objects"][prompt.text] for slide in held]
        ratio_S = np.array([entry["importance"]["ratio"] for entry in told])
        control_S = np.array([entry["importance"]["control"]["mean"] for entry in told])
        enriched_S = np.array([entry["weight_share"] / entry["area_share"] for entry in told])
        found[prompt.text] = {
            "slides": len(held),
            **asdict(importance(loss_S, ratio_S * loss_S, control_S * loss_S)),
            "enrichment": mean(enriched_S, np.arange(len(held)).astype(str)),
            "exceeds": sum(entry["importance"]["exceeds"] for entry in told),
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathsegmentor.slide_objects", description=__doc__)
    parser.add_argument("slides", type=Path, nargs="+", metavar="SLIDE", help="folder of one real slide's DICOM files")
    parser.add_argument("--composed", type=int, default=6, help="how many composed slides, every other one with tumour")
    parser.add_argument("--pathserve", type=Path, default=Path(".venv/bin/pathserve"))
    parser.add_argument("--work", type=Path, required=True, help="where slides and reports are kept")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        real = {
            slide.name: explained(chosen.pathserve, slide, chosen.work / slide.name / "report")
            for slide in chosen.slides
        }
        composed = {}
        for number in range(chosen.composed):
            folder = chosen.work / f"composed-{number}"
            slide = folder / "slide"
            if slide.is_dir():
                shutil.rmtree(slide)
            tumour = compose(slide, number)
            told = explained(chosen.pathserve, slide, folder / "report")
            right = told["classes"].index(max(told["classes"])) == tumour
            composed[folder.name] = {"tumour": tumour, "right": right, **told}
        found = {
            "weights_sha256": drawn_by([*real.values(), *composed.values()]),
            "settings": SETTINGS,
            "real": {"slides": real, "objects": over_slides([*real.values()])},
            "composed": {"slides": composed, "objects": over_slides([*composed.values()])},
        }
        write_atomic(chosen.out, json_bytes(found))

    return command.status(work, "The figures")


if __name__ == "__main__":
    sys.exit(main())
