"""A report on a real slide whose answers are invented: the product's own code but for the network.

No Triton is needed, and every class, an empty one and uncertain tiles occur on any slide.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway import __version__
from gateway.analyses.classification import TissueClassification
from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.slide_half import ServedModel, SlideOutcome, SlideTask
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.domain.report import Picture, Report, ReportState, Software
from gateway.inference import ModelRepository
from gateway.operations.settings import Settings
from gateway.reports import SlideSource, picture
from gateway.reports.encode import result_objects
from gateway.slides import Slide

ANALYSIS = "5d6f7f0e-3a37-4f0b-9a55-0d6f4b9be1aa"
MODEL = "tissue_classification"
_EMPTY_CLASS = 2


class InventedEngine:
    """Answers by a tile's brightness: all classes but one, and every eighth tile uncertain."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._asked = 0

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        brightness_B = batch["image"].mean(axis=(1, 2, 3))
        found = [index for index in range(self._classes) if index != _EMPTY_CLASS]
        logits_BC = np.zeros((len(brightness_B), self._classes), np.float32)
        for row, brightness in enumerate(brightness_B):
            self._asked += 1
            if self._asked % 8:
                logits_BC[row, found[int(brightness) // 4 % len(found)]] = 4 + brightness / 100
        return {"logits": logits_BC}


@dataclass(frozen=True, slots=True)
class Invented:
    """A report with all that its encoders are given."""

    report: Report
    source: SlideSource
    pictures: Mapping[str, bytes]


def invented(files: list[Path], work: Path) -> Invented:
    """The report on one slide, as if its stain and organ were unknown, so that every object is drawn.

    Raises what reading the slide raises.
    """
    repository = ModelRepository(Settings().model_repository)
    card = repository.card(MODEL)
    half = TissueClassification()
    with Slide.open(files) as slide:
        header = slide.header = replace(slide.header, stains=(), site=None)
        specimen = Specimen(slides=(SlideReference(header.study_uid, (header.series_uid,)),))
        order = Order(protocol="tissue-classification", specimens=(specimen,))
        task = SlideTask(
            slide=slide,
            models=(ServedModel(folder=MODEL, card=card, contract=repository.contract(MODEL)),),
            order=order,
            specimen=specimen,
            options=options_of(protocol_named(order.protocol), order),
            folder=work,
        )
        plan = half.plan(task)
        engine = InventedEngine(len(card.labels))
        asyncio.run(half.infer(task, plan, engine, progress=lambda done: None, cancelled=lambda: False))
        outcome = half.outcome(task)
        source = SlideSource(
            series=header.series_uid,
            levels=tuple(slide.source_dataset(level.index) for level in slide.levels),
            instances=tuple(level.sop_instance_uids for level in slide.levels),
            read=outcome.level,
            tiles=outcome.tiles,
        )
        return _report(repository, order, outcome, source)


def _report(repository: ModelRepository, order: Order, outcome: SlideOutcome, source: SlideSource) -> Invented:
    pictures: list[Picture] = []
    data: dict[str, bytes] = {}
    for role, encoded in outcome.pictures.items():
        file = f"{role}-1.{'jpg' if role == 'thumbnail' else 'png'}"
        pictures.append(picture(role, file, encoded, source.series))
        data[file] = encoded
    tissue = outcome.tissue
    assert tissue is not None
    report = Report(
        schema_version="1.0",
        analysis_id=ANALYSIS,
        protocol=order.protocol,
        state=ReportState.PRELIMINARY,
        issued=datetime(2026, 11, 26, 9, 30, 15, tzinfo=UTC),
        statement="Research use, not a medical device. Its answers are invented for a test.",
        exploratory=tissue.exploratory,
        software=Software(
            name="pathserve", manufacturer="pathserve", version=__version__, device_uid="2.25.329800735698586"
        ),
        models=(repository.card(MODEL).version,),
        order=order,
        slides=(outcome.reading,),
        findings=outcome.findings,
        tissue=(tissue,),
        pictures=tuple(pictures),
        objects=result_objects((outcome.reading,), (source,)),
    )
    return Invented(report, source, data)
