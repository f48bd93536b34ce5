"""What a run has learned from goes into its manifest and comes out again."""

from pathlib import Path

import numpy as np
import pytest

from training.data.dataset import load
from training.data.seen import Seen
from training.runs import RunWriter, open_run, runs_folder

pytestmark = pytest.mark.training


def test_groups_and_pictures_of_the_items_are_named(made_data: Path) -> None:
    dataset = load("cric_cells")
    seen = Seen.of(dataset, np.flatnonzero(dataset.groups_N == "cric_block_01"))
    assert seen.groups == {"cytology_cric": ("cric_block_01",)}
    assert len(seen.hashes) == 2  # two fields, whatever the number of cells
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in seen.hashes)
    both = Seen.union([seen, Seen.of(load("oral"), np.array([0, 39]))])
    assert both.groups == {"cytology_cric": ("cric_block_01",), "he_oral": ("oral_00", "oral_19")}
    assert len(both.hashes) == 4


def test_a_manifest_keeps_it_and_one_of_before_has_none(made_data: Path) -> None:
    dataset = load("oral")
    seen = Seen.of(dataset, np.arange(6))
    writer = RunWriter(runs_folder() / "learned", b'name = "learned"', resume=False)
    writer.weights_path.write_bytes(b"weights")
    run = writer.finish(metrics={}, seed=1, data=dataset.sources[:6], seen=seen)
    assert Seen.read(open_run(run.path).manifest) == seen
    assert run.manifest["data"][0]["group"] == "oral_00"
    assert Seen.read({"data": []}) == Seen({}, ())
