"""What a cervical slide is called from the probabilities of its seven classes: the one rule of training and of serving.

A slide is abnormal where 1 - p(NILM), calibrated, reaches the operating point, which a validation centre gave. Its
category is then the most probable of that side's supported classes: an unsupported class counts towards abnormal and is
never named, and where it is the most probable one, that is said. Adaptation may only make a call stricter on its own:
where it would turn an abnormal slide into a normal one, the call without it stands, and says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.domain.bethesda import AGC, CLASSES, NILM

SITE_OUT_OF_SCOPE = "site out of scope"
NOT_SUPPORTED = "the most probable class is not supported"
TURNED_NORMAL = "adaptation would turn an abnormal slide normal"


@dataclass(frozen=True, slots=True)
class ScreeningPoint:
    """abnormal_from: the least 1 - p(NILM) of an abnormal slide; supported: by class, whether it may be named."""

    abnormal_from: float
    supported: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """categories: the numbers of the classes named, the first the slide's category; AGC and a squamous class are both
    named where each alone reaches the operating point. None are where no class of the side is supported. passed_over:
    whether the most probable class of the side is not supported, so that it is not named."""

    abnormal: bool
    categories: tuple[int, ...]
    passed_over: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """call: what the report says; None where normal may not be said on its own. adapted, unadapted: what either
    probabilities alone would say. findings: why the call is not simply the adapted one."""

    call: Call | None
    adapted: Call
    unadapted: Call
    findings: tuple[str, ...]


def called(probabilities_C: Sequence[float], point: ScreeningPoint) -> Call:
    """The call of calibrated probabilities, one for each of Bethesda's classes."""
    if not len(probabilities_C) == len(point.supported) == len(CLASSES):
        raise ValueError(f"a call rests on {len(CLASSES)} classes")
    if not all(map(math.isfinite, probabilities_C)):
        raise ValueError("a call rests on finite probabilities")
    if 1 - probabilities_C[NILM] < point.abnormal_from:
        return Call(False, (NILM,))
    ranked = sorted(range(NILM + 1, len(CLASSES)), key=lambda number: -probabilities_C[number])
    named = [number for number in ranked if point.supported[number]]
    passed_over = not point.supported[ranked[0]]
    if not named:
        return Call(True, (), passed_over)
    first = named[0]
    other = next((number for number in named if (number == AGC) != (first == AGC)), None)
    if other is None or min(probabilities_C[first], probabilities_C[other]) < point.abnormal_from:
        return Call(True, (first,), passed_over)
    return Call(True, (first, other), passed_over)


def decided(
    adapted_C: Sequence[float], unadapted_C: Sequence[float], point: ScreeningPoint, *, out_of_scope: bool = False
) -> Decision:
    """The decision from calibrated probabilities with and without a site's adaptation (the same where there is none).
    `out_of_scope`: the site lies so far from the model's source that normal may not be said on its own."""
    adapted, unadapted = called(adapted_C, point), called(unadapted_C, point)
    findings, call = [], adapted
    if unadapted.abnormal and not adapted.abnormal:
        findings.append(TURNED_NORMAL)
        call = unadapted
    if call.passed_over:
        findings.append(NOT_SUPPORTED)
    if out_of_scope:
        findings.append(SITE_OUT_OF_SCOPE)
    return Decision(None if out_of_scope and not call.abnormal else call, adapted, unadapted, tuple(findings))
