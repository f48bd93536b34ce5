"""What the colours that were measured on a slide mean: one answer to each verdict of `gateway.slides.pap_stain`, for
screening and for the fit of a site, so that a site is fitted to no slide that screening would not read."""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from gateway.slides import pap_stain, quality
from gateway.slides.pap_stain import StainVerdict


@dataclass(frozen=True, slots=True)
class StainSaid:
    """What there is to say of a slide's colours. `key`: of the finding; `refused`: whether nothing may rest on the
    slide, whatever order and header state; where not, its stain is what these state."""

    key: str
    text: str
    refused: bool


def stain_of(quality_NF: npt.NDArray[np.float32]) -> StainVerdict:
    """A slide's stain from the figures (N, `quality.WIDTH`) of its windows as they are."""
    return pap_stain.judge(quality.colours(quality_NF))


def said_of(stain: StainVerdict) -> StainSaid | None:
    """None where the colours are Papanicolaou's."""
    match stain.verdict:
        case "papanicolaou":
            return None
        case "other":
            return StainSaid(
                "stain-not-papanicolaou",
                f"The slide's colours are not those of Papanicolaou's stain: {100 * stain.counterstain_share:.1f} % of "
                f"them are of its counterstains, over {stain.spread_deg:.0f}° of hue.",
                refused=True,
            )
        case "colourless":
            return StainSaid(
                "stain-colourless",
                "What is on the slide has hardly any colour: whether it is stained by Papanicolaou's method cannot be "
                "told.",
                refused=True,
            )
        case "too little":
            return StainSaid(
                "stain-too-little",
                f"Too little of the slide is stained for its stain to be measured: {stain.stained} coloured pixels of "
                f"those that were looked at; {pap_stain.LEAST_PIXELS} are asked for.",
                refused=False,
            )
        case _:
            assert_never(stain.verdict)
