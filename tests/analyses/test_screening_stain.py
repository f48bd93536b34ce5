"""Every verdict on a slide's colours means something to screening and to the fit of a site."""

from typing import get_args

import pytest

from gateway.analyses.screening_stain import said_of
from gateway.analyses.sites_seen import StainColourless, StainNotPapanicolaou
from gateway.domain.tables import finding_code
from gateway.slides.pap_stain import StainVerdict, Verdict

REFUSED = {"other": StainNotPapanicolaou, "colourless": StainColourless}


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_every_verdict_has_its_words(verdict: Verdict) -> None:
    said = said_of(StainVerdict(verdict, 150, 0.0125, 40.0))
    if verdict == "papanicolaou":
        assert said is None
        return
    assert said is not None
    assert finding_code(said.key).display
    assert said.refused is (verdict in REFUSED)
    if said.refused:
        assert said.key == REFUSED[verdict].reason
    figures = {"other": ("1.2 %", "40°"), "colourless": ("hardly any colour",), "too little": ("150", "200")}
    assert all(figure in said.text for figure in figures[verdict])
