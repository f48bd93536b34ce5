"""The typed recipe of a slide head, and what it says of the slides that its bags are composed to."""

from typing import Literal

from pydantic import Field

from training.publish import Published
from training.runs import Part, Recipe


class Slides(Part):
    """How many slides are composed, and how: `train` new ones every epoch, `validation` in each inner fold.

    A slide has 1 to `most_tiles` tiles (training and validation: `most_training_tiles`), log-uniform; half of the
    slides hold the target, on a share of the tiles that is log-uniform from `least_share` to 1, one tile at least.
    """

    train: int = Field(gt=1)
    validation: int = Field(gt=1)
    test: int = Field(gt=1)
    planted: int = Field(gt=0)
    most_training_tiles: int = Field(gt=0)
    most_tiles: int = Field(gt=0)
    least_share: float = Field(gt=0, le=1)


class Optimiser(Part):
    """Adam on one slide at a time, cosine to zero by epoch. The inner folds say after which epoch training ends: the
    one of the least loss on slides of held-out tiles."""

    epochs: int = Field(gt=0)
    rate: float = Field(gt=0)
    decay: float = Field(ge=0)


class SlideHeadRecipe(Recipe):
    """`encoder` is the recipe whose run gives the features, `encoder_model` the model that serves it.

    `hidden` is the width inside the head; TransMIL has half as many landmarks. `target` is the class of tile that makes
    a slide positive. `splits` is how often tiles are split anew and a head is trained and measured; the controls and
    baselines are trained on the first `control_splits` of them. The served head is trained on all tiles, in the same
    way. `greatest_bag` is the number of rows up to which the served graph is proven.
    """

    stage: Literal["head"]
    encoder: str
    encoder_model: str
    head: Literal["abmil", "transmil"]
    hidden: int = Field(default=512, gt=0, multiple_of=16)
    target: str
    splits: int = Field(default=5, gt=0)
    control_splits: int = Field(default=5, gt=0)
    inner_folds: int = Field(default=4, gt=1)
    accuracy_when_answered: float = Field(default=0.95, gt=0.5, lt=1)
    slides: Slides
    optimiser: Optimiser
    bootstrap: int = Field(default=1000, gt=0)
    greatest_bag: int = Field(gt=1)
    publish: Published
