"""What the objects of an order's prompts mean to a slide's answer: their importance, and their part in its weights.

PathSegmentor (arXiv 2506.20988), interpretability: an object is blurred, and the loss of the slide's model is compared
with the loss before.
"""

from dataclasses import dataclass

from gateway.domain.codes import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over repeats, and two of these beyond each of which lie at most 2.5 % of them."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChange:
    """By how much (-1..1) the probability of a class changes where the object is blurred; `control`: where random areas
    of tissue of the same size are, in the mean."""

    index: int
    change: float
    control: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """`ratio`: the loss with the object blurred, of the loss without; `control`: the same of random areas of tissue of
    equal size, over the repeats. More than 1 means little where the control is no less: `exceeds` says whether `ratio`
    is above all but at most 2.5 % of the repeats, below 41 of them above all."""

    ratio: float
    control: Interval
    exceeds: bool
    changes: tuple[ClassChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedObject:
    """One prompt of the order, as an object that the answer may rest on.

    `index`: its place in the order, from 0. `supported`: whether the model of masks was measured for it, `val_dice` how
    well (0..1). `presence`: its greatest probability to be there. `tiles` of those explained hold it; it covers
    `area_share` (0..1) of their area and, each pixel weighing as much as its tile, `weight_share` of their weights.
    `importance`: None where it was not found.
    """

    index: int
    prompt: str
    triple: str
    category: Code
    code: Code
    supported: bool
    val_dice: float | None
    presence: float
    tiles: int
    area_share: float
    weight_share: float
    importance: Importance | None

    @property
    def enrichment(self) -> float | None:
        """Its share of the weights, of its share of the area: 1 where the model weighs it like everything else."""
        return self.weight_share / self.area_share if self.area_share else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What was found on the `tiles` of a slide that weigh most, which hold `weight_share` (0..1) of all weights.

    `target`: index of the class whose loss is compared, the most probable one; `loss`: its cross-entropy (nats) before
    anything is blurred. `repeats` of the control; `blur_um`: standard deviation of the blur. `objects`: the most
    important first, those that were not found last; prompts that cannot be answered at the slide's resolution are left
    out.
    """

    target: int
    loss: float
    tiles: int
    weight_share: float
    repeats: int
    blur_um: float
    objects: tuple[ExplainedObject, ...]
