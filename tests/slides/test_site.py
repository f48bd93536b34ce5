"""A site's colours, its fit with the gate, and its state as bytes, on cells and pixels that are drawn."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from gateway.slides.cell_evidence import contributions
from gateway.slides.site_colour import ColourMap, Densities, counted, densities
from gateway.slides.site_fit import (
    SiteCells,
    SiteNotFittable,
    Weights,
    affine,
    demand_spread,
    fit,
    moments,
    source_of,
)
from gateway.slides.site_state import Features, SiteState, SiteStateInvalid, Source, demand_fits, not_commissioned

WIDTH = 8
SHIFT = np.linspace(-3, 3, WIDTH).astype(np.float32)


def nilm(features_ND: Features) -> Weights:
    """A made model: a cell with a high first feature is abnormal."""
    return 1 / (1 + np.exp(4 * (features_ND[:, 0].astype(np.float64) - 2)))


def slides(seed: int, count: int, share: float = 0.0) -> list[SiteCells]:
    """Cells of slides; a share of each one's cells is abnormal, with a first feature of 6."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        cells_ND = rng.normal(0, 1, (60, WIDTH)).astype(np.float32)
        cells_ND[: round(60 * share), 0] += 6
        made.append(SiteCells(cells_ND, nilm))
    return made


def together(parts: list[SiteCells]) -> SiteCells:
    return SiteCells(np.concatenate([part.features_ND for part in parts]), nilm)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(20, 250, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def source(pixels: np.ndarray) -> Source:
    return source_of(densities(counted(pixels)), together(slides(1, 64)), slides(2, 64))


def fitted(source: Source, pixels: np.ndarray, raw: Features, coloured: Features) -> SiteState:
    def cells(colour: ColourMap | None) -> SiteCells:
        return SiteCells(raw if colour is None else coloured, nilm)

    return fit("North / scanner 2", 1, source, 40, counted(pixels), cells)


def test_a_map_of_colours_brings_the_densities_to_the_sources(pixels: np.ndarray) -> None:
    grey = np.array([[[0, 51, 255]]], np.uint8)
    assert counted(grey).sum() == 3
    assert counted(np.zeros((2, 2, 3), np.uint8)).sum() == 0
    half = ColourMap(Densities((0.0,) * 3, (1.0,) * 3), Densities((0.0,) * 3, (2.0,) * 3))
    assert half(grey)[0, 0].tolist() == [0, round(255 * 0.2**2), 255]  # twice the density: the light is squared
    dark = (pixels.astype(float) ** 1.2 / 255**0.2).astype(np.uint8)
    mapped = ColourMap(densities(counted(dark)), densities(counted(pixels)))(dark)
    assert np.abs(mapped.astype(int) - pixels).mean() < 2 < np.abs(dark.astype(int) - pixels).mean()


def test_a_site_like_the_source_is_left_alone_to_the_bit(source: Source, pixels: np.ndarray) -> None:
    held_out = together(slides(5, 40)).features_ND
    state = fitted(source, pixels, held_out, held_out)
    assert (state.verdict, state.changes_nothing) == ("like the source", True)
    assert (state.gamma_D * held_out + state.beta_D).tobytes() == held_out.tobytes()


def test_a_shifted_site_is_adapted_and_a_far_one_is_out_of_scope(source: Source, pixels: np.ndarray) -> None:
    cells_ND = together(slides(6, 40)).features_ND
    near = cells_ND + np.sqrt(source.gate).astype(np.float32)
    state = fitted(source, pixels, cells_ND * 2 + SHIFT, near)
    assert state.verdict == "adapted"
    assert state.colour is not None
    assert state.maps_features
    there = moments(state.gamma_D * near + state.beta_D, nilm(state.gamma_D * near + state.beta_D))
    np.testing.assert_allclose(there.mean_D, source.mean_D, atol=0.05)
    np.testing.assert_allclose(there.deviation_D, source.deviation_D, rtol=0.05)
    noise = fitted(source, pixels, cells_ND + 100, cells_ND + 100)
    assert noise.verdict == "out of scope"
    assert noise.changes_nothing
    assert not noise.maps_features


def test_features_stay_where_mapped_colours_are_enough(source: Source, pixels: np.ndarray) -> None:
    cells_ND = together(slides(6, 40)).features_ND
    near = cells_ND + 0.5 * np.sqrt(source.gate).astype(np.float32)
    state = fitted(source, pixels, cells_ND * 2 + SHIFT, near)
    assert state.verdict == "adapted"
    assert state.distance_coloured is not None
    assert 0 < state.distance_coloured <= source.gate < (state.distance_raw or 0)
    assert state.colour is not None
    assert not state.changes_nothing
    assert not state.maps_features
    assert (state.gamma_D * near + state.beta_D).tobytes() == near.tobytes()


@pytest.mark.parametrize(("gates", "verdict"), [(2.9, "adapted"), (3.1, "out of scope")])
def test_a_site_three_gates_away_with_mapped_colours_is_out_of_scope(
    source: Source, pixels: np.ndarray, gates: float, verdict: str
) -> None:
    cells_ND = np.random.default_rng(6).normal(0, 1, (4000, WIDTH)).astype(np.float32)
    even = SiteCells(cells_ND, lambda cells_ND: np.ones(len(cells_ND)))
    moved_ND = cells_ND - moments(even.features_ND, np.ones(4000)).mean_D + source.mean_D
    moved_ND += source.deviation_D * np.float32(np.sqrt(gates * source.gate))
    cells = replace(even, features_ND=moved_ND.astype(np.float32))
    assert fit("North", 1, source, 40, counted(pixels), lambda colour: cells).verdict == verdict


def test_either_half_of_the_map_of_features_counts(source: Source) -> None:
    plain = not_commissioned("West", source)
    for name in ("gamma_D", "beta_D"):
        changed_D = getattr(plain, name).copy()
        changed_D[-1] += 0.5
        state = replace(plain, **{name: changed_D})
        assert state.maps_features
        assert not state.changes_nothing


def test_weights_keep_the_share_of_abnormal_slides_out_of_the_fit(source: Source) -> None:
    sick = together(slides(7, 40, share=0.5))
    gamma_D, beta_D = affine(sick, source)
    plain_D, _ = affine(SiteCells(sick.features_ND, lambda cells_ND: np.ones(len(cells_ND))), source)
    assert abs(gamma_D[0] - 1) < 0.1
    assert abs(beta_D[0]) < 0.1
    assert plain_D[0] < 0.5


@dataclass(frozen=True)
class Slidewise:
    """Cells of which a slide's are there at a time, drawn when they are asked for."""

    slides: int
    width: int = WIDTH
    move: float = 0.0

    def parts(self) -> Iterator[SiteCells]:
        for number in range(self.slides):
            cells_ND = np.random.default_rng(number).normal(0, 1, (200, self.width)).astype(np.float32) + self.move
            yield SiteCells(cells_ND, nilm)


def test_cells_slide_by_slide_give_the_figures_of_all_at_once(source: Source, pixels: np.ndarray) -> None:
    near = Slidewise(40, move=float(1.2 * np.sqrt(source.gate)))
    whole = together(list(near.parts()))
    apart, at_once = (
        fit("North", 1, source, 40, counted(pixels), lambda _, cells=cells: cells) for cells in (near, whole)
    )
    assert apart.verdict == at_once.verdict == "adapted"
    assert apart.cells == at_once.cells == 8000
    assert apart.distance_raw == pytest.approx(at_once.distance_raw, rel=1e-9)
    np.testing.assert_allclose(apart.gamma_D, at_once.gamma_D, rtol=1e-6)
    np.testing.assert_allclose(apart.beta_D, at_once.beta_D, rtol=1e-5, atol=1e-6)


def test_parts_without_weight_and_of_little_weight_count_as_in_the_whole(source: Source) -> None:
    """Weights of several sizes, the greatest in the middle: the effective number is that of all of them."""
    rng = np.random.default_rng(0)
    sets = [
        (rng.normal(0, 1, (50, WIDTH)).astype(np.float32), np.full(50, weight)) for weight in (1e-9, 0.0, 1.0, 1e-3)
    ]

    @dataclass(frozen=True)
    class Parts:
        def parts(self) -> Iterator[SiteCells]:
            yield from (SiteCells(cells_ND, lambda _, weights_N=weights_N: weights_N) for cells_ND, weights_N in sets)  # type: ignore[misc]

    weights_N = np.concatenate([each for _, each in sets])
    whole = SiteCells(np.concatenate([each for each, _ in sets]), lambda _: weights_N)
    for one, other in zip(affine(Parts(), source), affine(whole, source), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    effective = weights_N.sum() ** 2 / np.square(weights_N).sum()
    for cells in (Parts(), whole):
        affine(cells, source, effective * 0.999)
        with pytest.raises(SiteNotFittable, match="weigh as much as 50 cells"):
            affine(cells, source, effective * 1.001)


def test_memory_does_not_grow_with_the_slides(source: Source, pixels: np.ndarray) -> None:
    wide = 256
    broad = Source(source.densities, np.zeros(wide, np.float32), np.ones(wide, np.float32), source.gate)

    def peak(slides: int) -> int:
        cells = Slidewise(slides, wide, float(1.2 * np.sqrt(source.gate)))
        tracemalloc.start()
        try:
            assert fit("North", 1, broad, slides, counted(pixels), lambda colour: cells).verdict == "adapted"
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(32)  # what numpy takes once
    assert peak(4 * 32) < 1.2 * peak(32) < 4 * 32 * 200 * wide * 4  # less than all features once


def test_cells_that_a_few_slides_bring_are_too_few() -> None:
    demand_spread([25] * 8)
    demand_spread([7] * 32)
    for cells in ([1000, *[1] * 31], [200, *[0] * 31], [*[1000] * 7, *[0] * 25], [6] * 32):
        with pytest.raises(SiteNotFittable, match="of which no slide brings more than 25; its slides show"):
            demand_spread(cells)


def test_too_few_slides_fit_no_site(source: Source, pixels: np.ndarray) -> None:
    with pytest.raises(SiteNotFittable, match="32 slides or more, and these are 31"):
        fit("North", 1, source, 31, counted(pixels), lambda colour: together(slides(8, 31)))


@pytest.mark.parametrize("count", [1, 3, 199])
def test_too_few_cells_fit_no_site(source: Source, pixels: np.ndarray, count: int) -> None:
    cells = SiteCells(together(slides(8, 40)).features_ND[:count] + SHIFT, nilm)
    with pytest.raises(SiteNotFittable, match=f"fitted to 200 cells or more, and its slides show {count}"):
        fit("North", 1, source, 40, counted(pixels), lambda colour: cells)


def test_cells_that_hardly_count_as_nilm_do_not_make_up_for_few(source: Source, pixels: np.ndarray) -> None:
    cells_ND = together(slides(8, 40)).features_ND
    cells_ND[:3] = np.array([[-1], [0], [1]]) * 0.02 + 1.2 * np.sqrt(source.gate)
    weights_N = np.r_[np.ones(3), np.full(len(cells_ND) - 3, 1e-5)]
    with pytest.raises(SiteNotFittable, match="weigh as much as 3 cells, and a site is adapted to 200 or more"):
        fit("North", 1, source, 40, counted(pixels), lambda colour: SiteCells(cells_ND, lambda _: weights_N))


@pytest.mark.parametrize("weighty", [3, 199, 200])
def test_colours_alone_are_mapped_to_as_many_cells_as_features_are(
    source: Source, pixels: np.ndarray, weighty: int
) -> None:
    far_ND = together(slides(8, 40)).features_ND * 2 + SHIFT
    near_ND = np.tile(source.mean_D, (len(far_ND), 1))
    weights_N = np.r_[np.ones(weighty), np.full(len(far_ND) - weighty, 1e-9)]

    def cells(colour: ColourMap | None) -> SiteCells:
        return SiteCells(far_ND if colour is None else near_ND, lambda _: weights_N)

    if weighty < 200:
        with pytest.raises(SiteNotFittable, match=f"as {weighty} cells, and a site is adapted to 200 or more"):
            fit("North", 1, source, 40, counted(pixels), cells)
    else:
        state = fit("North", 1, source, 40, counted(pixels), cells)
        assert (state.verdict, state.maps_features) == ("adapted", False)


def test_cells_whose_weight_goes_as_they_are_adapted_fit_no_site(source: Source, pixels: np.ndarray) -> None:
    near_ND = together(slides(6, 40)).features_ND + 1.2 * np.sqrt(source.gate).astype(np.float32)

    def weigh(cells_ND: Features) -> Weights:
        """All count as they are, and two once anything is adapted."""
        return (
            np.ones(len(cells_ND)) if np.array_equal(cells_ND, near_ND) else np.r_[1.0, 1, np.zeros(len(near_ND) - 2)]
        )

    with pytest.raises(SiteNotFittable, match="weigh as much as 2 cells"):
        fit("North", 1, source, 40, counted(pixels), lambda colour: SiteCells(near_ND, weigh))


def test_cells_that_are_all_the_same_fit_no_site(source: Source, pixels: np.ndarray) -> None:
    same_ND = np.full((400, WIDTH), 1.2 * np.sqrt(source.gate), np.float32)
    with pytest.raises(SiteNotFittable, match="are the same"):
        fit("North", 1, source, 40, counted(pixels), lambda colour: SiteCells(same_ND, lambda _: np.ones(400)))


def test_a_state_is_its_bytes_and_any_value_changes_its_digest(source: Source, pixels: np.ndarray) -> None:
    cells_ND = together(slides(6, 40)).features_ND
    state = fitted(source, pixels, cells_ND + SHIFT, cells_ND + np.sqrt(source.gate).astype(np.float32))
    read = SiteState.from_bytes(state.to_bytes())
    assert read.digest == state.digest
    assert read.gamma_D.tobytes() == state.gamma_D.tobytes()
    step_D = state.beta_D.copy()
    step_D[-1] = np.nextafter(step_D[-1], np.float32(9))
    assert state.colour is not None
    other = replace(state.colour, site=Densities((0.1,) * 3, (1.0,) * 3))
    changes = [{"beta_D": step_D}, {"version": 2}, {"site": "South"}, {"slides": 41}, {"colour": other}, {"gate": 0.5}]
    assert len({state.digest, *(replace(state, **change).digest for change in changes)}) == 1 + len(changes)
    for damaged in (state.to_bytes()[:-1], state.to_bytes().replace(b"North", b"N\xc3rth"), b"{}", b"[]"):
        with pytest.raises(SiteStateInvalid):
            SiteState.from_bytes(damaged)
    unknown = not_commissioned("West", source)
    assert unknown.changes_nothing
    assert unknown.verdict == "not commissioned"
    assert Source.read(source.record()).digest == source.digest
    with pytest.raises(SiteStateInvalid, match="another model"):
        demand_fits(state, replace(source, gate=1.0))


def test_what_cells_add_sums_to_the_logits() -> None:
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(size=(5, 7)).astype(np.float32)
    attention_N = rng.dirichlet(np.ones(5)).astype(np.float32)
    np.testing.assert_allclose(contributions("mean", logits_NC).sum(0), logits_NC.mean(0), atol=1e-6)
    np.testing.assert_array_equal(contributions("max", logits_NC).sum(0), logits_NC.max(0))
    summed = contributions("attention", logits_NC, attention_N).sum(0)
    np.testing.assert_allclose(summed, attention_N @ logits_NC, atol=1e-6)
