"""The rows of cervical screening: what they say of given times, and that an analysis is measured as it is served."""

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.domain.bethesda import HSIL, NILM
from gateway.operations.settings import Settings
from tests.benchmarks.bench_screening import Raw, costs_of, measured, rates_of
from tests.benchmarks.rows import Row
from tests.benchmarks.screened_slide import STAGES, Taken
from tests.support.screening import smear, write_smear
from tests.support.screening_models import write_screening

SMALL = Taken(
    windows=100,
    cells=40,
    frames=500,
    stages_s=dict.fromkeys(STAGES, 0.0) | {"fetch": 1.0, "windows": 10.0, "cells": 1.0, "report": 2.0},
    peak_mb=300.0,
)
MIDDLE = replace(SMALL, windows=200, stages_s=SMALL.stages_s | {"windows": 20.0})
LARGE = replace(SMALL, windows=400, stages_s=SMALL.stages_s | {"windows": 40.0}, peak_mb=330.0)
AREAS_MM2 = (2.0, 4.0, 8.0)
STEADY = (Raw(10.0, 80.0),) * 4


def row(rows: list[Row], start: str) -> Row:
    [found] = [each for each in rows if each.name.startswith(start)]
    return found


def test_rates_are_compared_with_the_raw_ones() -> None:
    rows = rates_of("large", LARGE, Raw(10.0, 40.0))
    detector, encoder = row(rows, "screening detector rate, 400 windows"), row(rows, "screening encoder rate, 40 cells")
    assert (detector.value, detector.ratio, detector.short) == (10.0, 1.0, False)
    assert (encoder.value, encoder.ratio, encoder.short) == (40.0, 1.0, False)
    slower = replace(LARGE, stages_s=LARGE.stages_s | {"windows": 50.0, "cells": 1.2})
    rows = rates_of("large", slower, Raw(10.0, 40.0))
    assert row(rows, "screening detector rate").short
    assert row(rows, "screening encoder rate").short


def test_a_handful_of_cells_says_nothing_of_the_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rates_of("large", replace(LARGE, cells=3), Raw(10.0, 40.0))
    assert not [each for each in rows if each.name.startswith("screening encoder rate")]
    assert "3 cells" in capsys.readouterr().err


def test_every_stage_is_a_row() -> None:
    rows = rates_of("large", LARGE, Raw(10.0, 40.0))
    stages = [each for each in rows if each.name.startswith("screening whole analysis: ")]
    assert {each.name.rsplit(" ", 1)[1]: each.value for each in stages} == LARGE.stages_s
    assert row(rows, "screening whole analysis, large").value == sum(each.value for each in stages) == 44.0
    assert row(rows, "screening peak memory, large").value == LARGE.peak_mb


def test_a_cost_that_grows_faster_than_the_tissue_is_short() -> None:
    rows = costs_of(AREAS_MM2, (SMALL, MIDDLE, LARGE), STEADY)
    linear = row(rows, "screening cost linear")
    assert (linear.value, linear.ratio, linear.short) == (5.5, pytest.approx(5.5 / 7), False)
    assert row(rows, "screening cost of each window beyond 200").ratio == pytest.approx(1)
    # What a fixed part of the cost hides is seen in what a further window costs.
    square = replace(LARGE, stages_s=LARGE.stages_s | {"windows": 160.0})
    rows = costs_of(AREAS_MM2, (SMALL, MIDDLE, square), STEADY)
    assert row(rows, "screening cost linear").short
    assert row(rows, "screening cost of each window beyond 200").ratio == pytest.approx(7)


def test_a_machine_that_becomes_slower_meanwhile_is_not_taken_for_a_cost() -> None:
    late = replace(LARGE, stages_s={stage: 2 * seconds for stage, seconds in LARGE.stages_s.items()})
    raws = (Raw(10, 80), Raw(10, 80), Raw(5, 40), Raw(5, 40))
    middle = replace(MIDDLE, stages_s={stage: seconds / 0.75 for stage, seconds in MIDDLE.stages_s.items()})
    rows = costs_of(AREAS_MM2, (SMALL, middle, late), raws)
    assert row(rows, "screening cost linear").ratio == pytest.approx(5.5 / 7)
    assert row(rows, "screening cost of each window beyond 200").ratio == pytest.approx(1)


def test_memory_that_grows_with_the_slide_is_short() -> None:
    assert row(costs_of(AREAS_MM2, (SMALL, MIDDLE, LARGE), STEADY), "screening peak memory").ratio == pytest.approx(1.1)
    heavy = replace(LARGE, peak_mb=400.0)
    assert row(costs_of(AREAS_MM2, (SMALL, MIDDLE, heavy), STEADY), "screening peak memory").short


@pytest.mark.triton
async def test_slides_are_measured_as_they_are_served(tmp_path: Path) -> None:
    cells = [(HSIL, 120.0, 130.0), *((NILM, 60.0 + 60 * place, 90.0) for place in range(4))]
    slides = [
        write_smear(tmp_path / f"slide-{side_um:g}", smear(cells, size_um=side_um), root=f"{side_um}")
        for side_um in (300.0, 500.0)
    ]
    settings = Settings(state=tmp_path / "state", model_repository=write_screening(tmp_path / "models"))
    taken, raws = await measured(settings, slides, tmp_path)
    assert [each.windows for each in taken] == [4, 9]
    assert [each.cells for each in taken] == [len(cells)] * 2
    for each in taken:
        assert tuple(each.stages_s) == STAGES
        assert min(each.stages_s.values()) > 0
        assert each.frames > 0
        assert 50 < each.peak_mb < 2000
    assert len(raws) == 3
    assert min(min(raw.windows_per_s, raw.cells_per_s) for raw in raws) > 0
    assert all(each.value > 0 for each in rates_of("small", taken[0], raws[0]))
