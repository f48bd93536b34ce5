"""What the tests of masks and of studies share: the models, written once, and what a study is held on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.domain.model import ModelCard
from gateway.inference import ModelRepository
from gateway.operations.settings import Settings
from tests.support.pathseg import write_pathseg

if TYPE_CHECKING:
    from tests.analyses.study_support import Cohort


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


@pytest.fixture(scope="session")
def screening_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the models of cervical screening whose answers are known."""
    from tests.support.screening_models import write_screening

    return write_screening(tmp_path_factory.mktemp("screening-models") / "repository")


@pytest.fixture
def cohort(
    screening_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Iterator[Cohort]":
    """A state folder for studies, with the ledger that they look into."""
    from tests.analyses.study_support import Cohort
    from tests.support.commands import commands_on

    with commands_on(tmp_path / "state", screening_models, monkeypatch):
        cohort = Cohort(tmp_path / "state", capsys)
        yield cohort
        cohort.ledger.close()
