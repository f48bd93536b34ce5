"""The rule from probabilities to a call: the operating point, the supported classes, both branches, and the guards."""

import pytest

from gateway.domain.bethesda import AGC, ASC_US, HSIL, LSIL, NILM, SCC
from gateway.domain.screening import (
    NOT_SUPPORTED,
    SITE_OUT_OF_SCOPE,
    TURNED_NORMAL,
    Call,
    ScreeningPoint,
    called,
    decided,
)

ALL = (True,) * 7
POINT = ScreeningPoint(0.2, ALL)


def of(**shares: float) -> list[float]:
    """Probabilities of some classes by name; the rest is NILM's."""
    found = [0.0] * 7
    for name, share in shares.items():
        found[{"asc_us": ASC_US, "lsil": LSIL, "hsil": HSIL, "scc": SCC, "agc": AGC}[name]] = share
    found[NILM] = 1 - sum(shares.values())
    return found


def test_the_operating_point_decides_and_not_the_most_probable_class() -> None:
    assert called(of(lsil=0.19), POINT) == Call(False, (NILM,))
    assert called(of(lsil=0.15, hsil=0.1), POINT) == Call(True, (LSIL,))
    assert called([0.75, 0.25, 0, 0, 0, 0, 0], ScreeningPoint(0.25, ALL)).abnormal  # the point itself is abnormal


def test_a_class_without_support_counts_towards_abnormal_and_is_never_named() -> None:
    without_agc = ScreeningPoint(0.2, (*(True,) * 6, False))
    assert called(of(agc=0.3, hsil=0.4), without_agc) == Call(True, (HSIL,))
    seen = of(agc=0.9, hsil=0.02, lsil=0.01)
    decision = decided(seen, seen, without_agc)
    assert decision.call == Call(True, (HSIL,), passed_over=True)
    assert decision.findings == (NOT_SUPPORTED,)


def test_where_no_abnormal_class_is_supported_the_slide_is_abnormal_without_a_name() -> None:
    seen = of(scc=0.5)
    decision = decided(seen, seen, ScreeningPoint(0.2, (True, *(False,) * 6)))
    assert decision.call == Call(True, (), passed_over=True)
    assert decision.findings == (NOT_SUPPORTED,)


@pytest.mark.parametrize("wrong", [[float("nan"), *[0.1] * 6], [0.9, float("inf"), *[0.0] * 5], [0.5, 0.5]])
def test_what_is_no_seven_probabilities_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="a call rests on"):
        called(wrong, POINT)


def test_agc_and_a_squamous_class_are_both_named_where_each_passes() -> None:
    assert called(of(agc=0.3, hsil=0.4, lsil=0.25), POINT).categories == (HSIL, AGC)
    assert called(of(agc=0.5, scc=0.21), POINT).categories == (AGC, SCC)
    assert called(of(agc=0.5, scc=0.19), POINT).categories == (AGC,)
    assert called(of(lsil=0.4, hsil=0.4), POINT).categories == (LSIL,)


@pytest.mark.parametrize("number", range(1, 7))
def test_every_abnormal_class_can_be_named(number: int) -> None:
    chances = [0.1] + [0.9 if place == number else 0.0 for place in range(1, 7)]
    assert called(chances, POINT).categories == (number,)


def test_adaptation_turns_no_abnormal_slide_normal_on_its_own() -> None:
    sick, well = of(hsil=0.5), of(hsil=0.05)
    turned = decided(well, sick, POINT)
    assert turned.call == turned.unadapted == Call(True, (HSIL,))
    assert not turned.adapted.abnormal
    assert turned.findings == (TURNED_NORMAL,)
    stricter = decided(sick, well, POINT)
    assert stricter.call == Call(True, (HSIL,))
    assert stricter.findings == ()


def test_out_of_scope_normal_is_not_said_and_abnormal_is() -> None:
    away = decided(of(), of(), POINT, out_of_scope=True)
    assert away.call is None
    assert away.findings == (SITE_OUT_OF_SCOPE,)
    assert decided(of(scc=0.6), of(scc=0.6), POINT, out_of_scope=True).call == Call(True, (SCC,))
