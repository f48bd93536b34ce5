"""What a cervical slide was read as (protocol `cervical-screening`): adequacy, category, probabilities and their cells.

The seven classes and their numbers are those of `gateway.domain.bethesda`, the deciding rule is
`gateway.domain.screening`; adequacy is as in The Bethesda System for Reporting Cervical Cytology (2014).
"""

from dataclasses import dataclass
from typing import Literal

from gateway.domain.bethesda import NILM
from gateway.domain.codes import Code
from gateway.domain.tables import finding_code

ORDERS_POINT = "order"
"""The name of the operating point that an order set, in place of the model's."""

Outcome = Literal["negative", "abnormal", "unsatisfactory", "no_cells", "withheld"]
"""What became of a slide, in short; `withheld`: no category for any reason but the two before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adequacy:
    """Whether a slide can be judged. `code`: satisfactory or unsatisfactory for evaluation; `reasons`: why it is not.

    `squamous_cells`: the estimated number of squamous cells on it; `least_cells`: how many are asked for.
    `obscured_share`, `blurred_share` (0..1) are parts of the stained area of windows that are neither empty nor inked.
    """

    code: Code
    satisfactory: bool
    reasons: tuple[Code, ...]
    squamous_cells: int
    least_cells: int
    obscured_share: float
    blurred_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """The state of the slide's site, an input of the model (`gateway.slides.site_state`).

    `version` 0: nobody fitted the site; `digest`: sha256 of the state's bytes; `applied`: whether it changes anything;
    `features_mapped`: whether it maps cells' features, beside colours (None: an earlier release read the slide);
    `distance_raw` and `distance_coloured`: of the site from the model's source, before and after its colours were
    mapped, held against `gate`; `signed_by`: who released it.
    """

    site: str
    version: int
    verdict: str
    digest: str
    applied: bool
    features_mapped: bool | None = None
    distance_raw: float | None
    distance_coloured: float | None
    gate: float | None
    signed_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningClass:
    """One of Bethesda's classes: its number, abbreviation and code (as may be shown for this slide), and its calibrated
    probability with and without the site's adaptation. One that is not `supported` is never the category.

    `logit`, `logit_unadapted`: what the slide's engine answered, before the temperature and the biases of its card made
    probabilities of it; None where a release that did not keep them read the slide.
    """

    index: int
    name: str
    code: Code
    supported: bool
    probability: float
    probability_unadapted: float
    logit: float | None = None
    logit_unadapted: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenedCell:
    """One of the cells that the answer rests on most, the first the heaviest. `index`: the Bethesda number that the
    detector gave it, with `score` (0..1); `contribution`: what it adds to the logit of `towards`, a Bethesda number.
    Where it lies: the middle and the size of its box, from the slide image's top left corner."""

    index: int
    score: float
    towards: int
    contribution: float
    x_um: float
    y_um: float
    width_um: float
    height_um: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningResult:
    """What one slide was read as.

    `classes` are empty where no cell was found; else they are all seven, whether a category is given or withheld.
    `abnormal` is None, and `categories` empty, where the category is withheld; the first of `categories` (numbers) is
    the slide's, a second one stands beside it (AGC and a squamous class). `withheld`: why there is none. A slide is
    abnormal where 1 - p(NILM) reaches `abnormal_from`, the operating point of that name. `detected`: the number of
    cells by abnormal class, in Bethesda's order; `bag`: how many of them the slide's model was given. `scale`: of the
    level that was read, to what the detector was shown (above 1: enlarged); None where an earlier release read it.
    """

    series: str
    exploratory: bool
    adequacy: Adequacy
    abnormal: bool | None
    categories: tuple[int, ...]
    withheld: tuple[Code, ...]
    classes: tuple[ScreeningClass, ...]
    operating_point: str
    abnormal_from: float
    adaptation: Adaptation
    detected: tuple[int, ...]
    bag: int
    gallery: tuple[ScreenedCell, ...]
    scale: float | None = None

    @property
    def turned(self) -> bool:
        """Whether the adaptation would turn an abnormal slide normal: then the call without it stands."""
        return any(
            1 - each.probability < self.abnormal_from <= 1 - each.probability_unadapted
            for each in self.classes
            if each.index == NILM
        )

    def standing(self, each: ScreeningClass) -> float:
        """The probability of one of its classes that the call rests on: with the adaptation, unless that turned it."""
        return each.probability_unadapted if self.turned else each.probability

    @property
    def deciding(self) -> float | None:
        """The 1 - p(NILM) that the call rests on; None where no cell was found."""
        return next((1 - self.standing(each) for each in self.classes if each.index == NILM), None)

    @property
    def outcome(self) -> Outcome:
        """Of an abnormal slide the same whether its category may be named or not; of several reasons the first."""
        if self.abnormal is not None:
            return "abnormal" if self.abnormal else "negative"
        first = next(iter(self.withheld), None)
        if first == self.adequacy.code:
            return "unsatisfactory"
        return "no_cells" if first == finding_code("no-candidate-cells") else "withheld"

    @property
    def category(self) -> ScreeningClass | None:
        """The slide's category; None where it is withheld."""
        number = next(iter(self.categories), None)
        return next((each for each in self.classes if each.index == number), None)
