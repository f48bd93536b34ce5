"""What is sent for masks of a region at once: strict, bounded, nothing unknown; and its way into the domain."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.analyses.order_form import Long, PatientBody, Prompt, RegionBody, Short, Uid
from gateway.domain.order import Patient
from gateway.domain.segment import SegmentAsk

MOST_PROMPTS = 16

EXAMPLE: dict[str, Any] = {
    "study": "1.2.826.0.1.3680043.8.498.1",
    "series": "1.2.826.0.1.3680043.8.498.1.1",
    "region": {"x_um": 1000.0, "y_um": 2000.0, "width_um": 256.0, "height_um": 256.0},
    "prompts": ["nuclei-level epithelial in colon pathology", "glands"],
}


class SegmentBody(BaseModel):
    """Prompts on a region of one slide. Patient, accession and container may be given as in an order: the slide is
    then read only where its header says the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [EXAMPLE]})

    study: Uid
    series: Uid
    region: RegionBody
    prompts: list[Prompt] = Field(min_length=1, max_length=MOST_PROMPTS)
    patient: PatientBody | None = None
    accession: Short | None = None
    container: Long | None = None

    def domain(self) -> SegmentAsk:
        return SegmentAsk(
            study=self.study,
            series=self.series,
            region=self.region.domain(),
            prompts=tuple(self.prompts),
            patient=Patient(self.patient.id, self.patient.issuer) if self.patient else Patient(),
            accession=self.accession,
            container=self.container,
        )
