"""A model of masks by words as the gateway reads it: what its card says, and that a table of prompts is sealed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from gateway.domain.codes import Code
from gateway.domain.model import PresenceRule
from gateway.domain.prompts import token_ids
from gateway.inference import ModelRepository
from gateway.operations.errors import ModelRefused
from tests.conftest import ROOT
from tests.support.bags import OnnxEngine
from tests.support.models import read, seal, write
from tests.support.pathseg import ABSENT, PRESENCE_BY_LEVEL, TILE_PX, TRIPLES, expected_mask, write_pathseg


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("pathseg")
    shutil.copy(ROOT / "model_repository" / "card.schema.json", repository)
    return write_pathseg(repository)


@pytest.fixture
def repository(built: Path, tmp_path: Path) -> Path:
    """A copy to be harmed."""
    return shutil.copytree(built, tmp_path / "repository")


def test_the_card_says_which_prompts_it_answers_and_when_an_object_is_there(built: Path) -> None:
    models = ModelRepository(built)
    for folder in models.folders:
        models.check(folder)
    card = models.card("pathseg")
    assert (card.mpp, card.tile_px, card.labels, card.operating_points) == (0.25, TILE_PX, (), ())
    assert card.mpp_by_level == {"tissue": 1.0, "cell": 0.25, "nuclei": 0.25}
    assert card.presence_by_level["tissue"] == PresenceRule(threshold=0.6, temperature=1.0)
    assert {level: rule.threshold for level, rule in card.presence_by_level.items()} == {
        "tissue": 0.6, "cell": 0.5, "nuclei": 0.4,
    }  # fmt: skip
    assert card.prompts is not None
    known = card.prompts.entry("nuclei-level nucleus in colon pathology")
    assert known is not None
    assert (known.supported, known.dice, known.train_images) == (True, 0.75, 10)
    assert known.code == Code("84640000", "SCT", "Nucleus")
    denied = card.prompts.entry(f"tissue-level {ABSENT} in kidney pathology")
    assert denied is not None
    assert (denied.supported, denied.dice) == (False, None)
    assert card.prompts.entry("nuclei-level nucleus in lung pathology") is None
    assert card == models.card("pathseg"), "cards are compared where a folder was replaced"


@pytest.mark.parametrize(
    ("folder", "change"),
    [
        ("pathseg", {"prompts": None}),
        ("pathseg", {"presence_by_level": PRESENCE_BY_LEVEL | {"cell": {"threshold": 1.5, "temperature": 1.0}}}),
        ("pathseg_prompt", {"mpp_by_level": {"tissue": 1.0}}),
        ("pathseg_prompt", {"presence_by_level": PRESENCE_BY_LEVEL | {"cell": {"threshold": 0.5, "temperature": 0}}}),
        ("pathseg_prompt", {"presence_by_level": {"tissue": {"threshold": 0.5, "temperature": 1.0}}}),
        ("pathseg_prompt", {"vocabulary_size": None}),
        ("pathseg_image", {"prompts": {}}),
    ],
)
def test_a_card_that_lacks_what_masks_need_is_refused(repository: Path, folder: str, change: dict) -> None:
    """None leaves a field out."""
    card = read(repository / folder, "card.json") | change
    write(repository / folder, "card.json", {key: value for key, value in card.items() if value is not None})
    seal(repository / folder)
    with pytest.raises(ModelRefused, match=r"its card.json is not valid"):
        ModelRepository(repository).card(folder)


def test_an_exchanged_table_of_prompts_is_refused(repository: Path) -> None:
    table = repository / "pathseg_prompt" / "prompts.csv"
    table.write_text(table.read_text().replace("false", "true"))
    for folder in ("pathseg_prompt", "pathseg"):
        with pytest.raises(ModelRefused, match=r"its prompts.csv is not the one that its provenance.json names"):
            ModelRepository(repository).check(folder)


async def test_the_masks_of_tests_are_what_they_are_said_to_be(built: Path) -> None:
    engine = OnnxEngine(built)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, TILE_PX // 8, TILE_PX // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    ids, mask = token_ids(TRIPLES)
    text = await engine.infer("pathseg_text", {"token_ids": ids, "token_mask": mask})
    asked = {name: np.stack([rows, rows]) for name, rows in (text | {"text_mask": mask}).items()}
    found = await engine.infer("pathseg_prompt", asked | await engine.infer("pathseg_image", {"image": images}))
    for place, triple in enumerate(TRIPLES):
        due = np.stack([expected_mask(image, triple.level) for image in images])
        np.testing.assert_array_equal(found["mask_logits"][:, place] > 0, due)
        np.testing.assert_array_equal(found["presence_logit"][:, place], -4.0 if triple.object == ABSENT else 4.0)
