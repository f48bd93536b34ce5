"""What the tests of masks share: the models, written once."""

import shutil
from pathlib import Path

import pytest

from gateway.domain.model import ModelCard
from gateway.inference import ModelRepository
from gateway.operations.settings import Settings
from tests.support.pathseg import write_pathseg


@pytest.fixture(scope="session")
def mask_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the models of masks whose answers are known."""
    repository = tmp_path_factory.mktemp("mask-models")
    shutil.copy(Settings().model_repository / "card.schema.json", repository)
    return write_pathseg(repository)


@pytest.fixture(scope="session")
def mask_card(mask_models: Path) -> ModelCard:
    """The card that speaks for them."""
    return ModelRepository(mask_models).card("pathseg")
