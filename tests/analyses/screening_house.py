"""A place whose worker screens slides of an archive, by `tests.analyses.screening_worker`."""

import json
from pathlib import Path
from typing import Any

from gateway.archive import open_archive
from gateway.archive.cache import FrameCache
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.slides import Slide
from tests.analyses import screening_worker
from tests.analyses.place import CALLER, Place
from tests.analyses.screening_worker import GO
from tests.archive.costs import frames_are_cheap
from tests.support.forked import Forked

PATIENCE_S = 180.0


class House(Place):
    """`archive`: its address."""

    run = staticmethod(screening_worker.main)

    def __init__(self, state: Path, archive: str, models: Path) -> None:
        super().__init__(state)
        # Else a PACS that answers quickly sends whole instances, and nothing is missing when it is lost.
        frames_are_cheap(FrameCache(state / "cache", 2**30), open_archive(archive).address)
        self._archive = archive
        self._models = models

    def worker(self, **settings: str) -> Forked:
        house = {
            "PATHSERVE_ARCHIVE": self._archive,
            "PATHSERVE_MODEL_REPOSITORY": str(self._models),
            "PATHSERVE_RETRY_DELAY_S": "0.1",
        }
        return super().worker(**(house | settings))

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
