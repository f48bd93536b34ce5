"""Composed slides of cervical cytology, for testing the served pipeline:

    python -m training.smartccs.compose --part test --centre "stain A" --slides 4 --size-px 8000 --seed 1 --out DIR

Background of real fields with real cells placed in it, of one part of the split, as a simulated centre would show them;
one folder of DICOM images a slide, and `truth.json`. No patient's: every table that rests on them says "composed".
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.domain.bethesda import NAMES, NILM
from gateway.domain.codes import Code
from gateway.slides.phantom_dicom import Identity, Preparation
from gateway.slides.phantom_given import write_given
from training import command
from training.data.split import PARTS
from training.errors import TaskInvalid
from training.files import json_bytes, sha256_bytes, write_atomic
from training.smartccs.bags import PREVALENCE
from training.smartccs.centres import CENTRES
from training.smartccs.compose_faults import FAULTS, Fault, Strokes
from training.smartccs.compose_layout import LEAST_SIDE_PX, Layout, lay_out, turned_offset
from training.smartccs.compose_paint import Painter
from training.smartccs.compose_scene import BACKGROUNDS, Cell, Look, Scene
from training.smartccs.data import MPP

SOURCE_CENTRE = "source"
"""The fields as they were taken."""
CERVIX = Code("71252005", "SCT", "Cervix")
PAPANICOLAOU = (
    Code("12710003", "SCT", "hematoxylin stain"),
    Code("54221006", "SCT", "orange G stain"),
    Code("89139001", "SCT", "light green SF stain"),
)
_SCRAPING, _SMEAR = Code("56757003", "SCT", "Scraping"), Code("448895004", "SCT", "Smear procedure")
PREPARATIONS = {
    "smear": ("smear", Preparation(_SCRAPING, _SMEAR, Code("258433009", "SCT", "Smear sample"))),
    "liquid": (
        "disc",
        Preparation(_SCRAPING, _SMEAR, Code("430346005", "SCT", "Liquid based cytologic material")),
    ),
}
"""The smear's shape, and what the header says. The fields are of smears in both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which slides to compose. `kind` None: each is abnormal as often as `prevalence` says, its class by how often the
    classes are seen in screening, among those that the part has cells of."""

    part: str = "test"
    centre: str = SOURCE_CENTRE
    slides: int = 1
    side_px: int = 4096
    seed: int = 0
    kind: int | None = None
    prevalence: float = 1 - PREVALENCE[NILM]
    fault: str | None = None
    background: str | None = None
    preparation: str = "smear"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise TaskInvalid(f"There is no part {self.part!r} of the split. Name one of: {', '.join(PARTS)}.")
        if self.centre != SOURCE_CENTRE and self.centre not in CENTRES:
            names = ", ".join((SOURCE_CENTRE, *CENTRES))
            raise TaskInvalid(f"There is no centre {self.centre!r}. Name one of: {names}.")
        if self.fault is not None and self.fault not in FAULTS:
            raise TaskInvalid(f"Slides are not degraded as {self.fault!r}. Name one of: {', '.join(FAULTS)}.")
        if self.preparation not in PREPARATIONS:
            raise TaskInvalid(f"There is no preparation {self.preparation!r}. Name smear or liquid.")
        if self.slides < 1 or not 0 <= self.prevalence <= 1 or self.seed < 0:
            raise TaskInvalid("Ask for one slide at least, a prevalence from 0 to 1 and a seed of 0 or more.")
        if self.kind and self.fault is not None and not FAULTS[self.fault].cells:
            raise TaskInvalid(f"A slide degraded as {self.fault!r} holds no cell of {NAMES[self.kind]}. Ask for NILM.")
        if self.side_px < LEAST_SIDE_PX:
            raise TaskInvalid(f"A slide of {self.side_px} px is too small. Ask for {LEAST_SIDE_PX} px or more.")


def compose(wanted: Wanted, out: Path) -> list[dict[str, Any]]:
    """Write the slides and `truth.json` to `out`; what it says of them. The same bytes for the same arguments.

    Raises TaskInvalid for an `out` that holds something and for a class that the part has no cell of, DataMissing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TaskInvalid(f"{out.name} exists and is not an empty folder. Name a folder that does not exist.")
    fault = Fault() if wanted.fault is None else FAULTS[wanted.fault]
    scene = Scene(wanted.part, _look(wanted.centre, fault), fault.field, wanted.background)
    if wanted.kind is not None:
        scene.require(wanted.kind)
    out.mkdir(parents=True, exist_ok=True)
    said: list[dict[str, Any]] = []
    for number in range(wanted.slides):
        said.append(_slide(scene, wanted, fault, number, out))
        write_atomic(out / "truth.json", json_bytes({"composed": True, "patients": False, "slides": said}))
    return said


def _look(centre: str, fault: Fault) -> Look | None:
    """What is done to a field: the centre's change of it, then the stain's."""
    changes = [change for change in (CENTRES.get(centre), fault.stain) if change is not None]

    def look(image_HW3: np.ndarray) -> np.ndarray:
        for change in changes:
            image_HW3 = change(image_HW3)
        return image_HW3

    return look if changes else None


def _slide(scene: Scene, wanted: Wanted, fault: Fault, number: int, out: Path) -> dict[str, Any]:
    rng = np.random.default_rng((wanted.seed, number))
    kind = drawn_class(scene, rng, wanted.prevalence if fault.cells else 0.0) if wanted.kind is None else wanted.kind
    shape, preparation = PREPARATIONS[wanted.preparation]
    layout = lay_out(scene, rng, wanted.side_px, kind, shape, fault.density, fault.cells)
    seed = int(rng.integers(2**31))
    cover = Strokes(wanted.side_px, seed) if fault.strokes else None
    folder = f"slide-{number:03}"
    said = _truth(scene, wanted, layout, folder)
    name = sha256_bytes(json_bytes(said | {"seed": [wanted.seed, number]}))
    identity = Identity(
        patient_id=f"COMPOSED-{name[:12]}",
        patient_name="COMPOSED^NOT A PATIENT",
        patient_birth_date="",
        patient_sex="F",
        accession=f"COMPOSED-{name[:7]}",
        container=f"COMPOSED-{name[:8]}-A",
        preparation=preparation,
        description="Composed of public fields, no patient",
    ).completed(name, "cytology", PAPANICOLAOU, CERVIX)
    painter = Painter(scene, layout, seed, cover)
    side_px = wanted.side_px
    write_given(out / folder, painter.draw, width_px=side_px, height_px=side_px, mpp=MPP, identity=identity)
    return {"folder": folder, "study_uid": identity.study_uid, "series_uid": identity.series_uid} | said


def drawn_class(scene: Scene, rng: np.random.Generator, prevalence: float) -> int:
    """The class of a slide. Raises TaskInvalid where it is to be abnormal and the part has no abnormal cell."""
    if rng.random() >= prevalence:
        return NILM
    shares = np.array([PREVALENCE[kind] * (kind != NILM and bool(cells)) for kind, cells in scene.cells.items()])
    if not shares.sum():
        raise TaskInvalid(f"The part {scene.part} has no abnormal cell to place. Ask for a prevalence of 0.")
    return int(rng.choice(len(shares), p=shares / shares.sum()))


def _truth(scene: Scene, wanted: Wanted, layout: Layout, folder: str) -> dict[str, Any]:
    cells, used = [], {patch.field: {"background"} for patch in layout.patches.values()}
    for place, patch in layout.patches.items():
        left, top = layout.corner(place)
        for pasted in patch.pasted:
            used.setdefault(pasted.cell.field, set()).add("cells")
            for x, y in ((0.0, 0.0), *pasted.cell.also):
                dx, dy = turned_offset(x, y, pasted.turn)
                middle = left + pasted.x_px + 0.5 + dx, top + pasted.y_px + 0.5 + dy
                cells.append(_cell(scene, pasted.cell, middle))
    fields = [
        {"field": scene.fields[index].name, "group": scene.fields[index].group, "use": sorted(use)}
        for index, use in sorted(used.items())
    ]
    return {
        "folder": folder,
        "class": NAMES[layout.label],
        "part": wanted.part,
        "centre": wanted.centre,
        "simulated": wanted.centre != SOURCE_CENTRE or wanted.fault is not None,
        "degraded": wanted.fault,
        "preparation": wanted.preparation,
        "background": scene.background,
        "side_px": layout.side_px,
        "mpp": MPP,
        "share": layout.share,
        "background_nuclei": layout.nuclei,
        "cells": cells,
        "fields": fields,
        "source": scene.fields[0].source.dataset,
        "licence": scene.fields[0].source.licence,
    }


def _cell(scene: Scene, cell: Cell, middle: tuple[float, float]) -> dict[str, Any]:
    """A placed cell: its class, box (left, top, width, height in pixels of level 0) and field."""
    width, height = scene.fields[cell.field].boxes_N4[cell.nucleus, 2:].tolist()
    box = [round(middle[0] - width / 2, 1), round(middle[1] - height / 2, 1), width, height]
    return {"class": NAMES[cell.kind], "box": box, "field": scene.fields[cell.field].name}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m training.smartccs.compose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", default="test", help=f"one of: {', '.join(PARTS)}")
    parser.add_argument("--centre", default=SOURCE_CENTRE, help=f"source, or simulated: {', '.join(CENTRES)}")
    parser.add_argument("--slides", type=int, default=1, metavar="N")
    parser.add_argument("--size-px", type=int, default=4096, metavar="S", help="the slide's side, 0.245 µm a pixel")
    parser.add_argument("--seed", type=int, default=0)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--class", dest="kind", choices=NAMES, help="of every slide")
    which.add_argument(
        "--prevalence",
        type=float,
        default=1 - PREVALENCE[NILM],
        metavar="P",
        help="share of abnormal slides (default: %(default)s)",
    )
    parser.add_argument("--degrade", metavar="FAULT", help=f"simulated: {', '.join(FAULTS)}")
    parser.add_argument("--background", choices=BACKGROUNDS, help="default: negative fields where there are enough")
    parser.add_argument("--preparation", choices=tuple(PREPARATIONS), default="smear", help="as the header says it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    chosen = parser.parse_args(arguments)

    def work() -> None:
        wanted = Wanted(
            part=chosen.part,
            centre=chosen.centre,
            slides=chosen.slides,
            side_px=chosen.size_px,
            seed=chosen.seed,
            kind=None if chosen.kind is None else NAMES.index(chosen.kind),
            prevalence=chosen.prevalence,
            fault=chosen.degrade,
            background=chosen.background,
            preparation=chosen.preparation,
        )
        for said in compose(wanted, chosen.out):
            print(f"{said['folder']}: {said['class']}, {len(said['cells'])} cells placed")

    return command.status(work, "The slides")


if __name__ == "__main__":
    sys.exit(main())
