"""The tests' own models of cervical screening are what the repository, the engines and Triton take them for."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from gateway.domain.bethesda import CLASSES, NILM
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from gateway.slides.cell_evidence import contributions
from gateway.slides.cells import cells_of_tile
from gateway.slides.site_state import Source
from tests.support import screening_models as models
from tests.support.bags import OnnxEngine
from tests.support.models import read, seal, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(ROOT / "model_repository" / "card.schema.json", folder)
    return models.write_screening(folder)


def tile(cells: list[tuple[int, float, float]]) -> np.ndarray:
    """(S,S,3): glass with cells (class, x, y in pixels)."""
    image = np.full((models.TILE_PX, models.TILE_PX, 3), 243, np.uint8)
    for number, x, y in cells:
        models.paint(image, number, x, y, models.DETECT_MPP)
    return image


def test_the_repository_takes_them(repository: Path) -> None:
    found = ModelRepository(repository)
    for name in found.models:
        found.check(name)
    detect, embed, slide = (found.card(name) for name in ("smartccs_detect", "smartccs_embed", "smartccs_slide"))
    assert detect.detector is not None
    assert (detect.detector.overlap_px, detect.detector.nms_iou) == (96, 0.75)
    assert embed.detector is None
    assert embed.crop is not None
    assert embed.crop.transform_sha256 == models.CROPS.digest
    assert slide.screening is not None
    assert slide.screening.detector is not None
    assert slide.screening.detector.weights_sha256 == detect.version.weights_sha256
    assert Source.read(dict(slide.screening.source)).digest == models.SOURCE.digest
    assert len(detect.labels) == 6
    assert slide.encoder is not None
    assert slide.encoder.weights_sha256 == embed.version.weights_sha256


def test_the_cells_of_a_slide_are_its_own_models_to_say(repository: Path) -> None:
    """A detector of an earlier release said a number, too, and its card is read without it."""
    plain = ModelRepository(repository).card("smartccs_detect")
    folder = repository / "smartccs_detect"
    write(folder, "card.json", read(folder, "card.json") | {"top_k": models.TOP_K + 1})
    seal(folder)
    found = ModelRepository(repository)
    found.check("smartccs_detect")
    assert found.card("smartccs_detect").detector == plain.detector
    slide = found.card("smartccs_slide").screening
    assert slide is not None
    assert slide.top_k == models.TOP_K


async def test_a_blot_is_found_once_with_its_class(repository: Path) -> None:
    """One of every class, between squares of the network and on their borders."""
    painted = [(number, 50.0 + 70 * number, 40.0 + 61 * number) for number in range(len(CLASSES))]
    answer = await OnnxEngine(repository).infer("smartccs_detect", {"image": tile(painted)[None]})
    found = cells_of_tile(
        answer["scores"][0], answer["boxes"][0], (0, 0), models.TILE_PX, 0, min_score=0.2, nms_iou=0.75
    )
    assert len(found) == len(painted)
    order = np.argsort(found.boxes_N4[:, 0])
    middles = (found.boxes_N4[order, :2] + found.boxes_N4[order, 2:]) / 2
    np.testing.assert_allclose(middles, [cell[1:] for cell in painted], atol=4)
    assert found.classes_N[order].tolist() == [0, 0, 1, 2, 3, 4, 5]
    empty = await OnnxEngine(repository).infer("smartccs_detect", {"image": tile([])[None]})
    assert empty["scores"].max() == 0


@pytest.mark.parametrize("number", range(len(CLASSES)))
async def test_one_cell_among_many_decides_by_its_class(repository: Path, number: int) -> None:
    engine = OnnxEngine(repository)
    crops = [crop(NILM)] * 12 + [crop(number)]
    features = (await engine.infer("smartccs_embed", {"image": np.stack(crops)}))["embedding"]
    asked = bag(features)
    answer = await engine.infer("smartccs_slide", asked)
    assert answer["logits"][0].argmax() == number
    shared = contributions("max", answer["cell_logits"][0])
    np.testing.assert_allclose(shared.sum(0), answer["logits"][0], rtol=1e-5)
    assert (shared[-1, number] > 0) or number == NILM
    padded = {**asked, "features": np.pad(asked["features"], ((0, 0), (0, 5), (0, 0)), constant_values=9)}
    padded["mask"] = np.pad(asked["mask"], ((0, 0), (0, 5)))
    assert np.array_equal((await engine.infer("smartccs_slide", padded))["logits"], answer["logits"])


@pytest.mark.triton
async def test_triton_serves_them(repository: Path, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state", model_repository=repository, triton_url=None)
    direct = OnnxEngine(repository)
    names = ["smartccs_detect", "smartccs_embed", "smartccs_slide"]
    rng = np.random.default_rng(1)
    asked = {
        names[0]: {"image": np.stack([tile([(4, 200, 200)]), tile([])])},
        names[1]: {"image": np.stack([crop(number) for number in range(len(CLASSES))])},
        names[2]: bag(rng.normal(0, 1, (50, models.WIDTH)).astype(np.float32)),
    }
    async with TritonEngine.open(settings, names) as engine:
        assert [model.reason for model in engine.status()] == [None] * 3
        for name, batch in asked.items():
            answer, due = await engine.infer(name, batch), await direct.infer(name, batch)
            assert answer.keys() == due.keys()
            for output, array in due.items():
                assert np.array_equal(answer[output], array), (name, output)


def crop(number: int) -> np.ndarray:
    """(S,S,3): a cell of a class as the transform cuts it."""
    image = np.full((200, 200, 3), 243, np.uint8)
    models.paint(image, number, 100, 100, models.CROP_MPP)
    half = models.BOX_PX * models.DETECT_MPP / models.CROP_MPP / 2
    return models.CROPS(image, np.array([[100 - half, 100 - half, 100 + half, 100 + half]]))[0]


def bag(features_ND: np.ndarray) -> dict[str, np.ndarray]:
    width = features_ND.shape[1]
    return {
        "features": features_ND[None],
        "mask": np.ones((1, len(features_ND)), bool),
        "gamma": np.ones((1, width), np.float32),
        "beta": np.zeros((1, width), np.float32),
    }
