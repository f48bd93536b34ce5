"""The real sets: what their tables say, their splits as docs/data.md publishes them, and no picture on two sides."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from training.data import tcga
from training.data.corpus import HE_SETS
from training.data.dataset import NAMES, PATIENT_UNKNOWN
from training.data.dataset import load as load_anew
from training.data.seen import Seen
from training.data.split import PARTS, held_out
from training.errors import SplitInvalid
from training.gpfm import data as gpfm_data
from training.gpfm.evaluate import TILES
from training.pathbench.leakage import Origin, require_disjoint, status
from training.runs import RunWriter

pytestmark = pytest.mark.training

DOCUMENT = Path(__file__).parents[3] / "docs" / "data.md"
RESULTS = DOCUMENT.parent / "results" / "gpfm.json"
NO_TASK = {"ebhi", "monuseg", "monusac"}
"""Sets whose classes lie in too few patients for three parts."""


load = cache(load_anew)


@pytest.mark.parametrize("name", NAMES)
def test_the_real_sets_and_their_splits_are_as_published(real_data: None, name: str) -> None:
    dataset = load(name)
    items = {
        "crc9": 70, "oral": 516, "breakhis": 30, "osteosarcoma": 37, "ebhi": 43, "camelyon": 128, "consep": 432,
        "monuseg": 30, "monusac": 39, "cric_cells": 3840, "glomeruli": 24, "dsb2018": 106,
    }  # fmt: skip
    assert dataset.name == name
    assert len(dataset) == items[name]
    assert dataset.stain == {"cric_cells": "PAP", "glomeruli": "PAS"}.get(name, "HE")
    assert dataset.tier == ("B" if name in ("monuseg", "monusac") else "A")
    assert set(np.unique(dataset.labels_N)) - {-1} == set(range(len(dataset.classes)))
    assert dataset.read(len(dataset) - 1).dtype == np.uint8
    groups = len(set(dataset.groups_N))
    assert groups == {"oral": 427, "breakhis": 20, "ebhi": 32, "consep": 27, "cric_cells": 13, "monuseg": 30,
                      "monusac": 11}.get(name, groups)  # fmt: skip
    assert (dataset.grouping == PATIENT_UNKNOWN) == (
        name in ("crc9", "osteosarcoma", "camelyon", "glomeruli", "dsb2018")
    )
    if dataset.masks:
        assert dataset.read_mask(0).max() <= len(dataset.categories)
    # Its split: nothing on two sides, every class in every part, and the published one.
    found = held_out(dataset, allow_missing=True)
    require_disjoint(dataset, found)
    if name in NO_TASK:
        with pytest.raises(SplitInvalid, match="too few groups"):
            held_out(dataset)
    else:
        for part in PARTS:
            assert set(dataset.labels_N[found.indices(part)]) - {-1} == set(range(len(dataset.classes)))
    assert f"| {name} |" in DOCUMENT.read_text(encoding="utf-8")
    assert found.sha256[:16] in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("cancer", ["BLCA", "KIRP"])
def test_survival_tables_are_one_row_a_patient_and_split_by_hospital(real_data: None, cancer: str) -> None:
    table = tcga.load(cancer)
    assert len(table) == {"BLCA": 280, "KIRP": 178}[cancer] == len(set(table.cases_N))
    assert table.rna_NG.shape == (len(table), len(table.genes))
    assert np.isfinite(table.rna_NG).all()
    assert round(float(table.event_N.mean()), 3) == {"BLCA": 0.443, "KIRP": 0.185}[cancer]
    folds_N = tcga.site_folds(table, 5, seed=2026)
    for site in np.unique(table.sites_N):
        assert len(set(folds_N[table.sites_N == site])) == 1
    assert all(table.event_N[folds_N == fold].any() for fold in range(5))


def test_published_students_were_measured_on_tiles_of_all_the_corpus_s_sets(
    real_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not stained with haematoxylin and eosin among them."""
    monkeypatch.setattr(gpfm_data, "load", load)
    tiles_KHWC, groups_K = gpfm_data.unseen(TILES)
    assert {group.split()[0] for group in groups_K} == set(HE_SETS)
    runs = json.loads(RESULTS.read_bytes())["runs"]
    found = {name: run["metrics"]["agreement"] for name, run in runs.items() if "distill" in name}
    assert found
    for agreement in found.values():
        assert (agreement["tiles"], agreement["groups"]) == (len(tiles_KHWC), len(set(groups_K)))


def test_what_the_corpus_shows_is_clean_for_every_set(
    real_data: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [load(name) for name in HE_SETS]
    train = [held_out(dataset, allow_missing=True).indices("train") for dataset in parts]
    seen = Seen.union(Seen.of(dataset, index_K) for dataset, index_K in zip(parts, train, strict=True))
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path))
    writer = RunWriter(tmp_path / "all", b'name = "all"', resume=False)
    writer.weights_path.write_bytes(b"weights")
    sources = [dataset.sources[k] for dataset, index_K in zip(parts, train, strict=True) for k in index_K]
    writer.finish(metrics={}, seed=1, data=sources, seen=seen)
    for name in NAMES:
        dataset = load(name)
        found = status(Origin(run="all"), dataset, held_out(dataset, allow_missing=True))
        assert found.status == "clean", (name, found.reasons)
