"""A place whose worker screens slides of an archive, by `tests.analyses.screening_worker`."""

import json
import os
from pathlib import Path
from typing import Any

from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.slides import Slide
from tests.analyses import screening_worker
from tests.analyses.place import CALLER, Place
from tests.analyses.screening_worker import GO
from tests.support.forked import Forked

PATIENCE_S = 180.0


class House(Place):
    """`archive`: its address."""

    def __init__(self, state: Path, archive: str, models: Path) -> None:
        super().__init__(state)
        self._archive = archive
        self._models = models

    def worker(self, **settings: str) -> Forked:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PATHSERVE_")},
            "PATHSERVE_STATE": str(self.state),
            "PATHSERVE_ARCHIVE": self._archive,
            "PATHSERVE_MODEL_REPOSITORY": str(self._models),
            "PATHSERVE_RETRY_DELAY_S": "0.1",
            **settings,
        }
        process = Forked(
            screening_worker.main,
            ["0"],
            environment=environment,
            folder=self.state,
            out=self.state / "stdout",
            error=self.state / "stderr",
        )
        self.workers.append(process)
        return process

    def let_models_answer(self) -> None:
        (self.state / GO).touch()

    def order(self, slide: Path) -> str:
        """Order a slide; the analysis."""
        with Slide.open(sorted(slide.glob("*.dcm"))) as opened:
            header = opened.header
        specimen = Specimen(
            slides=(SlideReference(header.study_uid, (header.series_uid,)),), container=header.container_id
        )
        order = Order(
            "cervical-screening",
            (specimen,),
            accession=header.accession,
            patient=Patient(header.patient_id),
            settings=(("adequacy.min_cells", "0"),),
        )
        return self.ledger.accept(order, CALLER)[0].analysis.id

    def retry(self, analysis: str) -> None:
        self.ledger.retry(analysis, CALLER, None, None)

    def report(self, analysis: str) -> dict[str, Any]:
        path = self.state / "analyses" / analysis / "artifacts" / "report.json"
        return dict(json.loads(path.read_text()))
