"""The models of a repository as a task of a slide is given them."""

from collections.abc import Iterable
from pathlib import Path

from gateway.analyses.slide_half import ServedModel
from gateway.inference import ModelRepository


def served_models(models: Path, folders: Iterable[str]) -> tuple[ServedModel, ...]:
    repository = ModelRepository(models)
    return tuple(
        ServedModel(folder=name, card=repository.card(name), contract=repository.contract(name)) for name in folders
    )
