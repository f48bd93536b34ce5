"""Every experiment of Smart-CCS on made smears: what each file tells, and that what must not change does not."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gateway.domain.bethesda import HSIL, LSIL, NAMES, NILM
from gateway.domain.screening import ScreeningPoint
from gateway.slides.cells import Cells
from gateway.slides.site_state import identity
from tests.training.data import made
from tests.training.small_data import read_manifest, write_small_data
from tests.training.smartccs.tiny import detector_recipe
from training.data.common import Source, data_root
from training.errors import TaskInvalid
from training.files import json_bytes
from training.pathbench.probes import Labelled
from training.runs import find_run
from training.smartccs import embed, evaluate, missed, mode_figures, page, probes, recalibrate, site_gate, trial
from training.smartccs.bags import Bag
from training.smartccs.data import MPP, Field
from training.smartccs.norm_tuning import NormTuning, norm_parameters
from training.smartccs.recalibrate import OwnPoint, recalibrated
from training.smartccs.results import DETECTOR as DETECTOR_NAME
from training.smartccs.results import SHIPPED
from training.smartccs.slide_fit import Calibration
from training.smartccs.train import train

pytestmark = pytest.mark.training
DETECTOR = detector_recipe(
    name="tiny-detect",
    queries=8,
    data_mpp=0.49,
    merging="top_k = 5, score_threshold = 0.0",
    training="iterations = 1, log_every = 1, checkpoint_every = 1, validate_every = 1",
)
HEAD = """
name = "{name}"
system = "smartccs"
stage = "slide"
seed = 3
head = "mean"
hidden = 16
seeds = 2
top_k = 20
bootstrap = 20
{detector}
[encoder]
kind = "fresh"
recipe = "tiny-pretrain"
side_px = 64

[bags]
train = 12
validation = 32
test = 33
cells = [12, 16]
prevalence = "flat"

[training]
epochs = 3
rate = 1e-2
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    write_small_data(root)  # tissue, of which the controls are made
    folder = made.Made(root)
    made.smears(folder)
    folder.rows += read_manifest(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(folder.finish()))
        out = tmp_path_factory.mktemp("runs")
        patch.setenv("PATHSERVE_RUNS", str(out))
        small = (embed._RECIPES / "smartccs-pretrain-small.toml").read_text()
        small = small.replace("width = 192", "width = 24").replace("depth = 6", "depth = 1")
        (out / "tiny-pretrain.toml").write_text(small)
        patch.setattr(embed, "_RECIPES", out)
        for name, detector in (("tiny", ""), ("tiny-found", 'detector = "tiny-detect"')):
            (out / f"{name}.toml").write_text(HEAD.format(name=name, detector=detector))
        (out / "tiny-detect.toml").write_text(DETECTOR)
        for name in ("tiny-detect", "tiny", "tiny-found"):
            assert train(out / f"{name}.toml") is not None
        yield out


def told(runs: Path, experiment: str, recipe: str = "tiny", *options: str) -> dict:
    """An experiment's files, by name; of several, all in one."""
    out = runs / "results"
    assert evaluate.main([experiment, recipe, "--out", str(out), *options]) == 0
    found = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob(f"{experiment}-{recipe}*.json"))}
    return next(iter(found.values())) if len(found) == 1 else found


MISSED = ("missed", "--centres", "stain B")
MODES = ("modes", "--centres", "stain B")
NORMS = ("norms", "--centres", "stain B", "--updates", "5")
FORGETTING = ("forgetting", "--centres", "source", "scanner")
ORDER = ("order", "--centres", "stain B")
GATE = ("gate", "--centres", "stain A")
RECALIBRATED = ("recalibrated", "--centres", "stain A")
PAGED = (MISSED, MODES, NORMS, FORGETTING, GATE, ORDER, RECALIBRATED)


def test_modes_at_a_shifted_centre(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(runs, "modes", "tiny", *MODES[1:])
    assert {"none", "colour", "site", "A+B", "features", "all cells", "batch", "batch, anchored", "gradient"} < set(
        found["modes"]
    )
    assert {"Reinhard", "control: bank with shuffled labels", "control: statistics of another organ"} < set(
        found["modes"]
    )
    none = found["modes"]["none"]
    assert none["auc_gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert none["served"]["turned_normal"] == none["served"]["guarded"]["stopped"] == 0
    assert len(none["auc_by_head"]) == 2
    site = found["modes"]["site"]["served"]
    assert site["guarded"]["stopped"] == site["turned_normal"]
    assert "modes-tiny-stain_B.json" in capsys.readouterr().err
    told(runs, "modes", "tiny", *MODES[1:])
    assert "is there already" in capsys.readouterr().err


def test_modes_of_detected_cells_keep_the_bags(runs: Path) -> None:
    found = told(runs, "modes", "tiny-found", "--centres", "both", "--only", "none", "site")
    assert set(found["modes"]) == {"none", "site"}
    assert found["bags"] == 33
    assert list((runs / "cache").glob("found-*/*.npz"))


def test_what_a_detector_misses_is_told_of_the_same_bags(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(runs, "missed", "tiny-found", *MISSED[1:])
    assert found["annotated"] == dict.fromkeys(NAMES, 0) | {"NILM": 4, "LSIL": 1, "HSIL": 1}  # two test fields
    for kind in ("raw", "coloured"):
        assert all(found["found"][kind][name] <= number for name, number in found["annotated"].items())
        assert found["detections"][kind]["nuclei"] == sum(found["found"][kind].values())
        assert found["detections"][kind]["negative"] == 0  # there is an abnormal cell in each field
        assert found["empty"][kind] <= found["bags"]
    assert set(found["same_bags"]) == {"none", "site"}
    assert evaluate.main(["missed", "tiny", "--out", str(runs / "results"), "--centres", "source"]) == 0
    assert "of which none is missed" in capsys.readouterr().err


def test_a_bag_keeps_what_was_found_of_it_once() -> None:
    class_N = np.array([NILM, HSIL])
    cells = embed.CellSet(
        np.zeros((3, 2), np.float32), class_N[[0, 1, 1]], np.array([1, 3, 3]), np.array([0.5, 0.4, 0.9]),
        np.zeros(3, np.int64), (("a", "b", "test"),), {},
    )  # fmt: skip
    field = made_field(np.array([[0.0, 0, 10, 10], [50, 50, 10, 10], [90, 90, 10, 10]]), np.array([NILM, HSIL, LSIL]))
    corners_N4 = np.array([[1.0, 1, 9, 9], [50, 50, 60, 60], [51, 51, 61, 61]])
    look = embed.Look("made", lambda *_: Cells(corners_N4, cells.scores_N, cells.found_N, np.zeros(3, np.int64)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed.Look, "picture", lambda *_: np.zeros((1, 1, 3), np.uint8))
        matched = missed.Matched.of([field], look, cells.scores_N)
    assert matched.cell_A.tolist() == [0, 2, -1]  # of two cells on a nucleus the surer one stands for it
    assert missed._left(Bag(HSIL, np.array([1, 0, 1, 2]), 0.5), matched, cells, 5).cells_K.tolist() == [2, 0]
    assert missed._kinds(cells, matched) == {"nuclei": 2, "again": 1, "negative": 0, "unknown": 0}


def made_field(boxes_N4: np.ndarray, classes_N: np.ndarray) -> Field:
    return Field(Source("made.jpg", "made", "0" * 64, "CC0", "A", ""), "b", "test", MPP, boxes_N4, classes_N)


def test_norms_and_forgetting(runs: Path) -> None:
    found = told(runs, "norms", "tiny", *NORMS[1:])
    assert set(found["modes"]) == {"none", "site", "stat", "tent", "sar", "ema"}
    assert found["bags"] == 33  # all test bags are answered, whatever the norms were tuned on
    steps = {mode: row["steps"] for mode, row in found["modes"].items() if "steps" in row}
    assert (steps["stat"], steps["tent"], steps["ema"]) == (8, 5, 5)
    assert steps["sar"] <= 5
    tent = found["modes"]["tent"]["source"]
    assert tent["change"]["value"] == pytest.approx(tent["after"]["value"] - tent["before"]["value"])
    forgot = told(runs, "forgetting", "tiny", *FORGETTING[1:])["by_target"]["scanner"]
    assert forgot == {"source": "source", "target": "scanner", "same_states": True, "greatest_change": 0}


def test_an_encoder_that_tuning_leaves_changed_is_told(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(tuning: NormTuning, _: object) -> None:
        with torch.no_grad():
            norm_parameters(tuning._given)[0].add_(0.1)

    monkeypatch.setattr(NormTuning, "update", spoil)
    found = told(runs, "forgetting", "tiny", *FORGETTING[1:], "--again")["by_target"]["scanner"]
    assert found["greatest_change"] > 0
    monkeypatch.undo()
    told(runs, "forgetting", "tiny", *FORGETTING[1:], "--again")


def test_prevalence_and_streams(runs: Path) -> None:
    found = told(runs, "prevalence", "tiny", "--centres", "source", "stain A")
    fits = found["by_centre"]["stain A"]["fits"]
    assert len(fits) == 8
    assert {row["fit"] for row in fits.values()} == {"anchored", "all cells alike"}
    streams = found["sorted_stream"]["streams"]
    assert streams["sorted"]["none"]["auc"]["value"] == pytest.approx(streams["as dealt"]["none"]["auc"]["value"])


def test_the_gate_and_the_order(runs: Path) -> None:
    found = told(runs, "gate", "tiny", *GATE[1:])
    assert found["third_source_set"]["same_bits"] == (found["third_source_set"]["verdict"] == "like the source")
    assert set(found["strangers"]) == {"noise", "tissue (crc9)"}
    assert found["strangers"]["noise"]["verdict"] == "cannot be fitted"  # there are six nuclei in all
    assert set(found["shifts"]) == {"stain A"}
    assert len(found["one_block"]) == 1  # of the test part
    assert {row["verdict"] for row in found["one_block"].values()} == {"like the source"}
    (block,) = found["one_block"].values()
    assert block["auc_gain"]["value"] == 0
    own = block["own"]
    assert own["none"]["odds_of_nilm"] == own["site"]["odds_of_nilm"]  # like the source: the same answers
    assert own["site"]["auc"]["value"] == own["none"]["auc"]["value"]
    order = told(runs, "order", "tiny", *ORDER[1:])["by_centre"]["stain B"]
    assert order["fewer"]["least"] <= order["fewer"]["greatest"]
    modes = order["modes"]
    assert max(modes["site"]["greatest_change_by_crops"].values()) < 1e-5
    assert modes["site"]["greatest_change_by_order"] < 1e-5
    assert max(modes["site"]["greatest_change_by_batch"].values()) < 1e-5
    assert modes["batch"]["greatest_change_by_batch"]["1"] > 1e-3


@pytest.mark.usefixtures("runs")
def test_bags_of_one_block_answer_under_the_state_of_their_site() -> None:
    opened = trial.open_trial("tiny")
    cells = trial.at_centre(opened, "source").raw.cells
    (group,) = np.unique(cells.groups()[cells.parts() == "test"])
    same = identity("there", 1, "adapted", opened.served.source)
    moved = replace(same, beta_D=same.beta_D + np.linspace(-3, 3, len(same.beta_D), dtype=np.float32))
    plain, other = (site_gate.own_bags(opened, cells, cells, group, state) for state in (same, moved))
    assert plain is not None
    assert other is not None
    assert plain["site"]["odds_of_nilm"] == plain["none"]["odds_of_nilm"] == other["none"]["odds_of_nilm"]
    assert other["site"]["odds_of_nilm"] != other["none"]["odds_of_nilm"]
    unseen = site_gate.own_bags(opened, cells, cells, group, None)
    assert unseen is not None
    assert set(unseen) == {"none"}
    assert site_gate.own_bags(opened, cells, cells, "a block of no cells", moved) is None


def test_the_released_mode_changes_nothing(runs: Path) -> None:
    for row in told(runs, "released")["heads"].values():
        assert row["greatest_change"] < 1e-3
        assert row["class_changes"] == 0
        assert row["classifier_has_gradient"] is False


def test_detected_cells_against_annotated_ones(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(runs, "cells", "tiny-found")
    assert len(found["auc"]) == 4
    assert len(found["control_shuffled_labels"]) == 2
    assert evaluate.main(["cells", "tiny", "--out", str(runs / "results")]) == 1
    assert "Name a run with a detector" in capsys.readouterr().err


def test_a_detector_is_told_twice_beside_dark_blobs_and_a_control(runs: Path) -> None:
    found = told(runs, "detector", "tiny-detect")
    assert set(found["froc"]) == set(found["froc_annotated_only"]) == {"1", "2", "4", "8"}
    assert found["by_class"] == {}  # no class has 30 test cells
    assert {"dark_blobs", "above_dark_blobs", "ap50", "control_other_fields"} <= set(found)
    for how in ("", "_annotated_only"):
        gap = found[f"above_dark_blobs{how}"]["value"]
        assert gap == pytest.approx(found[f"froc{how}"]["4"]["value"] - found[f"dark_blobs{how}"]["4"]["value"])
    assert found["froc"]["1"]["low"] <= found["froc"]["1"]["value"] <= found["froc"]["1"]["high"]


def test_encoders_that_are_there_are_measured(runs: Path) -> None:
    fresh = embed.EncoderSettings(kind="fresh", recipe="tiny-pretrain", side_px=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "classes_of", lambda _: (NILM, HSIL))
        patch.setattr(probes, "ENCODERS", {probes.FRESH: fresh})
        (runs / "probed.toml").write_text(HEAD.format(name="probed", detector=""))
        assert evaluate.main(["encoders", str(runs / "probed.toml"), "--out", str(runs / "results")]) == 0
    found = json.loads((runs / "results" / "encoders-probed.json").read_text())
    assert found["ours_minus"] == {}  # our run is not there
    assert {"neighbours", "probe", "bags", "probe_auroc", "control_shuffled_labels"} <= set(
        found["encoders"][probes.FRESH]
    )


class _Leak:
    """Of chance, what does not shuffle."""

    def permutation(self, labels_N: np.ndarray) -> np.ndarray:
        return labels_N


def test_the_control_of_probes_is_chance_and_shows_labels_that_were_not_shuffled() -> None:
    rng = np.random.default_rng(1)
    labels_N = np.repeat([0, 1, 2], [300, 80, 20])  # as uneven as cells are
    parts = [Labelled(rng.normal(size=(400, 8)).astype(np.float32) + labels_N[:, None], labels_N) for _ in range(3)]
    fair = probes.chance(probes.shuffled_areas(*parts, 3, 0.01, rng), 7)
    assert fair["low"] <= 0.5 <= fair["high"]
    assert len(set(fair["shuffles"])) == probes.SHUFFLES
    leaking = probes.chance(probes.shuffled_areas(*parts, 3, 0.01, _Leak()), 7)  # type: ignore[arg-type]
    assert leaking["low"] > 0.9


def test_a_site_with_labelled_slides_has_its_own_threshold() -> None:
    rng = np.random.default_rng(0)
    labels_N = np.repeat([NILM, HSIL], [100, 30])
    logits_NC = rng.normal(size=(130, 7)).astype(np.float32)
    logits_NC[:, NILM] += np.where(labels_N == NILM, 3, 0)
    source = OwnPoint(Calibration(1.0, (0.0,) * 7), ScreeningPoint(0.99, (True,) * 7), False)
    own = recalibrated(logits_NC, labels_N, source, 0.95)
    assert own.own
    assert own.point.abnormal_from < 0.99
    assert recalibrated(logits_NC[1:], labels_N[1:], source, 0.95) is source
    assert recalibrated(logits_NC[:-1], labels_N[:-1], source, 0.95) is source
    assert recalibrate.LEAST_POSITIVE == 30


def test_recalibration_tells_both_thresholds(runs: Path) -> None:
    found = told(runs, "recalibrated", "tiny", *RECALIBRATED[1:])["by_centre"]["stain A"]["modes"]
    assert found["none"]["heads"] == 0  # too few labelled bags: the source's threshold stays
    assert found["none"]["own"] == found["none"]["source"]


def test_guards_stop_what_adaptation_would_turn_normal() -> None:
    plain_NC = np.full((4, 7), 0.1)
    plain_NC[:, NILM] = 0.4
    mode_NC = plain_NC.copy()
    mode_NC[:2, NILM], mode_NC[:2, 1:] = 0.94, 0.01
    labels_N = np.array([HSIL, NILM, HSIL, NILM])
    found = mode_figures.served(mode_NC, plain_NC, labels_N, ScreeningPoint(0.5, (True,) * 7), 10)
    assert (found["turned_normal"], found["turned_normal_of_abnormal"], found["turned_abnormal"]) == (2, 1, 0)
    assert (found["guarded"]["stopped"], found["guarded"]["sensitivity"]["value"]) == (2, 1.0)
    assert found["sensitivity"]["value"] == 0.5
    far = mode_figures.served(mode_NC, mode_NC, labels_N, ScreeningPoint(0.5, (True,) * 7), 10, out_of_scope=True)
    assert far["guarded"]["withheld"] == 2
    assert far["guarded"]["specificity"]["value"] == 0.0


def test_a_really_different_set_is_measured_where_it_is_at_hand(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "different"
    assert evaluate.main(["different", "tiny", "--out", str(out)]) == 0
    assert "There is no set sipakmed among the data" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    drawn = made.Made(data_root())
    for kind in ("Superficial-Intermediate", "Parabasal", "Metaplastic", "Koilocytotic"):
        folder = data_root() / f"cytology_sipakmed/im_{kind}/im_{kind}"
        folder.mkdir(parents=True)
        for number in range(4):
            assert cv2.imwrite(str(folder / f"{number}.bmp"), drawn.mosaic(120, 160))
            (folder / f"{number}_cyt01.dat").write_text("10,10\n70,12\n40,80\n")
            (folder / f"{number}_cyt02.dat").write_text("80,40\n150,110\n")
    told(runs, "different", "tiny", "--only", "none", "site")
    found = json.loads((runs / "results" / "different-tiny-sipakmed.json").read_text())
    assert set(found["modes"]) == {"none", "site"}
    assert found["modes"]["none"]["served"]["bags"]["LSIL"] > 0
    assert found["detected"]["raw"] == 32


def test_files_name_the_weights_that_they_rest_on(runs: Path) -> None:
    of_head = told(runs, "released")["digests"]
    manifests = {name: json.loads((runs / name / "manifest.json").read_text()) for name in ("tiny", "tiny-detect")}
    assert of_head["head"] == manifests["tiny"]["weights_sha256"]
    assert set(of_head) == {"head", "encoder"}  # its cells are annotated
    found = told(runs, "missed", "tiny-found", *MISSED[1:])["digests"]
    assert found["detector"] == manifests["tiny-detect"]["weights_sha256"]
    assert found["encoder"] == of_head["encoder"]  # fresh weights, of no run


def test_heads_of_an_earlier_detector_are_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = find_run("tiny-found")
    parents = {"detector": {"recipe": "tiny-detect", "weights_sha256": "00" * 32}}
    monkeypatch.setattr(trial, "find_run", lambda _: replace(run, manifest=run.manifest | {"starts_from": parents}))
    with pytest.raises(TaskInvalid, match="The detector was trained anew after the slide head"):
        trial.open_trial("tiny-found")


def test_settings_that_were_changed_are_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("seed = 1\n[training]\nrate = 2\nbatch = 3\n")
    recipe = {"seed": 1, "training": {"rate": 2, "batch": 4, "precision": "bf16"}, "publish": {"model": "a"}}
    assert evaluate._changes(recipe, tmp_path / "recipe.toml") == ["training.batch=4", "training.precision=bf16"]
    assert evaluate._changes(recipe, tmp_path / "absent.toml") == []


def test_every_file_has_a_place_on_the_page(runs: Path) -> None:
    """The files of these small runs, under the names of those that are shown."""
    for experiment, *options in PAGED:
        told(runs, experiment, "tiny-found" if experiment == "missed" else "tiny", *options)
    out, shown = runs / "results", runs / "shown"
    shown.mkdir()
    for every in ("runs", "blocks"):
        assert evaluate.main([every, "tiny", "--out", str(out)]) == 0
    for path in out.glob("*.json"):
        found = json.loads(path.read_text())
        if found["recipe"] == "tiny-found" and found["experiment"] == "modes":
            continue
        found["recipe"] = DETECTOR_NAME if found["recipe"] == "tiny-detect" else SHIPPED
        found["digests"] = {}
        (shown / path.name).write_bytes(json_bytes(found))
    text = page.page(shown)
    assert "`training/recipes/tiny.toml`" in text
    for heading in (
        "### stain B",
        "## The gate",
        "| scanner | yes | 0.0e+00 |",
        "TENT 5, of 8 slides",
        "## A site's own operating point",
    ):
        assert heading in text
    for heading in ("## What the detector misses", "| `cric_block_02` |", "So it is with "):
        assert heading in text
    assert not re.search(r"\bnan\b", text)
