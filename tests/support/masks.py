"""The engines of masks without Triton, and a task of protocol `segmentation` on a slide."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gateway.analyses.protocols import protocol_named
from gateway.analyses.slide_half import SlideTask
from gateway.domain.codes import Code
from gateway.domain.order import RegionUm
from tests.support.bags import OnnxEngine
from tests.support.slide_tasks import slide_task

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


def segmenting(
    slide_folder: Path,
    models: Path,
    folder: Path,
    *prompts: str,
    region: RegionUm | None = None,
    stain: str | None = "HE",
    site: Code | None = COLON,
    **settings: str,
) -> AbstractContextManager[SlideTask]:
    """The task of one slide. `settings`: with `__` for the dot."""
    return slide_task(
        PROTOCOL,
        slide_folder,
        models,
        folder,
        served=("pathseg_text", "pathseg"),
        stain=stain,
        site=site,
        prompts=prompts,
        region=region,
        settings=settings,
    )
