"""The typed recipe of a bench: which encoders meet which tasks, and how heads are fitted, the same for all encoders."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from training.runs import Recipe


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Linear(_Part):
    """A linear layer on frozen features: AdamW, cosine per iteration, stopped by the validation AUC.

    The published protocol has `scaling` "none", one rate (5e-4), 3000 epochs and patience 100. "train" standardises by
    the training items' mean and deviation, so that one rate suits features of any scale; of several rates the one with
    the best validation AUC is taken, for each encoder alike. "lbfgs" is a logistic regression, its penalty chosen on
    the validation part, and has no seeds.
    """

    optimiser: Literal["adamw", "lbfgs"] = "adamw"
    scaling: Literal["train", "none"] = "train"
    rates: tuple[float, ...] = (5e-4,)
    decay: float = 1e-5
    epochs: int = Field(default=3000, gt=0)
    patience: int = Field(default=100, gt=0)
    batch: int = Field(default=256, gt=0)
    penalties: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0)


class Neighbours(_Part):
    """kNN's choices of k, of which the validation part takes one; retrieval's votes, published or without defects."""

    k: tuple[int, ...] = (1, 5, 10, 20)
    temperature: float = 0.07
    retrieval: Literal["ours", "released"] = "ours"


class Bags(_Part):
    """A head over bags: Adam, cosine per epoch, one bag a step, stopped by the validation AUC; `scaling` as for the
    linear probe, by the training bags' tiles."""

    scaling: Literal["train", "none"] = "train"
    epochs: int = Field(default=50, gt=0)
    patience: int = Field(default=10, gt=0)
    rate: float = 2e-4
    decay: float = 1e-5
    hidden: int = 512
    attention: int = 128
    transmil_dim: int = 512
    transmil_seeds: tuple[int, ...] = tuple(range(10))
    dropout: float = 0.25


class Dense(_Part):
    """A linear layer on patch tokens; `rates` as for the linear probe, with the validation part's Dice. `seeds` are its
    own, fewer because a map has many cells."""

    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3,)
    decay: float = 1e-5
    epochs: int = Field(default=50, gt=0)
    patience: int = Field(default=10, gt=0)
    batch: int = Field(default=1024, gt=0)


class Survival(_Part):
    """Principal components of a table into a discrete-time head. `protocol` "released" reports the best epoch's figure
    on the fold that chose it, and "all" takes the bins from every row: both are optimistic and marked so."""

    bins: int = 4
    bins_from: Literal["train", "all"] = "train"
    protocol: Literal["nested", "released"] = "nested"
    components: tuple[int, ...] = (16,)
    rate: float = 2e-4
    decay: float = 1e-5
    epochs: int = Field(default=30, gt=0)
    batch: int = Field(default=1, gt=0)
    folds: int = 5
    seeds: tuple[int, ...] = (1, 2, 3)


class Controls(_Part):
    """The bench's own negative controls: the encoder under the shuffled labels, how many permutations each task sees,
    and how many the survival table; `scaled`, whose transform scales pixels, is given them wrongly scaled."""

    encoder: str
    scaled: str = "random-vit"
    permutations: int = Field(default=10, ge=5)
    survival_permutations: int = Field(default=40, ge=5)


class BenchRecipe(Recipe):
    """`encoders` and `tasks` are ids of their registries, or "registered" for all but those that `without` names.
    `seeds` are training repetitions."""

    stage: Literal["bench"]
    profile: Literal["fixed-fov", "native"] = "fixed-fov"
    encoders: tuple[str, ...] | Literal["registered"]
    tasks: tuple[str, ...] | Literal["registered"]
    without: tuple[str, ...] = ()
    seeds: tuple[int, ...] = tuple(range(10))
    bootstrap: int = Field(default=1000, gt=0)
    linear: Linear = Linear()
    neighbours: Neighbours = Neighbours()
    bags: Bags = Bags()
    dense: Dense = Dense()
    survival: Survival = Survival()
    controls: Controls
