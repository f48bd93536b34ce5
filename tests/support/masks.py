"""The engines of masks without Triton, and a task of protocol `segmentation` on a slide."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.slide_half import SlideTask
from gateway.domain.codes import Code
from gateway.domain.order import Order, RegionUm, SlideReference, Specimen
from gateway.slides import Slide
from tests.support.bags import OnnxEngine
from tests.support.served import served_models

COLON = Code("71854001", "SCT", "Colon")
PROTOCOL = protocol_named("segmentation")


class ChainedEngine(OnnxEngine):
    """The ensemble as its two steps, one after the other."""

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        if model != "pathseg":
            return await super().infer(model, batch)
        texts = dict(batch)
        features = await super().infer("pathseg_image", {"image": texts.pop("image")})
        return await super().infer("pathseg_prompt", features | texts)


@contextmanager
def segmenting(
    slide_folder: Path,
    models: Path,
    folder: Path,
    *prompts: str,
    region: RegionUm | None = None,
    stain: str | None = "HE",
    site: Code | None = COLON,
    **settings: str,
) -> Iterator[SlideTask]:
    """The task of one slide. `settings`: with `__` for the dot."""
    with Slide.open(sorted(slide_folder.glob("*.dcm"))) as slide:
        header = slide.header
        specimen = Specimen(
            container=header.container_id,
            stain=stain,
            site=site,
            slides=(SlideReference(header.study_uid, (header.series_uid,)),),
        )
        given = tuple((key.replace("__", "."), value) for key, value in settings.items())
        order = Order(protocol=PROTOCOL.name, specimens=(specimen,), prompts=prompts, region=region, settings=given)
        yield SlideTask(
            slide=slide,
            models=served_models(models, ("pathseg_text", "pathseg")),
            order=order,
            specimen=specimen,
            options=options_of(PROTOCOL, order),
            folder=folder,
        )
