"""What the detector is shown of a slide: the pixels that detectors of cells are trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gateway.domain.bethesda import HSIL
from tests.support.bags import OnnxEngine
from tests.support.screening import screened, screening, smear, write_smear
from tests.support.screening_models import DETECT_MPP, TILE_PX, write_screening

MPP = 0.25
FIELD_PX = round(TILE_PX * DETECT_MPP / MPP)


class Seen(OnnxEngine):
    """Keeps the windows."""

    def __init__(self, repository: Path) -> None:
        super().__init__(repository)
        self.windows: list[npt.NDArray[np.uint8]] = []

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        if model == "smartccs_detect":
            self.windows += list(batch["image"])
        return await super().infer(model, batch, deadline_s=deadline_s)


async def test_windows_are_reduced_by_the_mean_of_the_area_as_fields_are_in_training(tmp_path: Path) -> None:
    models = write_screening(tmp_path / "models")
    image_HW3 = smear([(HSIL, 90, 100)], size_um=FIELD_PX * MPP, mpp=MPP)
    engine = Seen(models)
    with screening(write_smear(tmp_path / "slide", image_HW3, mpp=MPP), models, tmp_path / "task") as task:
        await screened(task, engine)
    [window_HW3] = engine.windows
    expected_HW3 = cv2.resize(image_HW3, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(window_HW3, expected_HW3)
