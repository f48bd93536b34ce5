"""PathBench's leakage rules, each with an example that fails."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.data import made
from training.data.common import Source
from training.data.dataset import PATIENT_UNKNOWN, Dataset, load
from training.data.seen import Seen
from training.data.split import Split, digest, held_out
from training.errors import LeakageRefused
from training.pathbench import leakage
from training.pathbench.leakage import Origin, board, require_disjoint, status
from training.runs import Pretraining, Run, RunWriter, runs_folder

pytestmark = pytest.mark.training

ImageNet = Pretraining("lite0", "1", "lite0.pth", "0" * 64, "Apache-2.0", "ImageNet-1k")


@pytest.fixture(scope="module")
def oral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    folder = made.Made(tmp_path_factory.mktemp("made"))
    made.oral(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(folder.finish()))
        yield load("oral")


@pytest.fixture(scope="module")
def split(oral: Dataset) -> Split:
    return held_out(oral)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path))


def finished(name: str, **said: object) -> Run:
    """A run folder whose manifest says these things."""
    writer = RunWriter(runs_folder() / name, f'name = "{name}"'.encode(), resume=False)
    writer.weights_path.write_bytes(name.encode())
    return writer.finish(metrics={}, seed=1, **said)  # type: ignore[arg-type]


def changed(split: Split, part_of: Callable[[np.ndarray], np.ndarray]) -> Split:
    return replace(split, parts_N=part_of(split.parts_N.copy()))


# 1. Splits by patient, never by tile.


def test_a_split_by_tile_is_refused(oral: Dataset, split: Split) -> None:
    require_disjoint(oral, split)

    def by_tile(parts_N: np.ndarray) -> np.ndarray:
        parts_N[0], parts_N[1] = "train", "test"  # two tiles of one piece of tissue
        return parts_N

    with pytest.raises(LeakageRefused, match=r"1 group\(s\) in two parts, oral_00"):
        require_disjoint(oral, changed(split, by_tile))


def test_boxes_of_one_image_on_two_sides_are_refused(oral: Dataset, split: Split) -> None:
    twice = replace(oral, sources=(oral.sources[2], *oral.sources[1:]), groups_N=np.arange(40).astype(str))
    parts = np.array(["train"] * 40)
    parts[2] = "test"
    with pytest.raises(LeakageRefused, match=r"1 image\(s\) in two parts"):
        require_disjoint(twice, replace(split, parts_N=parts))


# 2. Encoder against data set: clean, overlap, unknown; the main board takes clean ones.


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ((), "clean"),
        (("ImageNet-1k",), "clean"),
        (("Prov-Path",), "clean"),
        (("TCGA", "oral oscc"), "overlap"),
        (("undisclosed",), "unknown"),
        (("33 public sets, undisclosed in part",), "unknown"),
        (("OpenPath",), "unknown"),
        (("undisclosed", "Oral OSCC"), "overlap"),
    ],
)
def test_others_encoders_are_judged_by_the_sets_they_name(
    oral: Dataset, split: Split, sets: tuple[str, ...], expected: str
) -> None:
    found = status(Origin(pretraining=sets), oral, split)
    assert found.status == expected
    assert bool(found.reasons) == (expected != "clean")
    assert board(found, oral) == ("main" if expected == "clean" else "flagged")


def test_random_weights_have_seen_nothing_and_unknown_patients_are_flagged(oral: Dataset, split: Split) -> None:
    found = status(Origin(pretraining=("Oral OSCC",), inherits_from=("uni",), random=True), oral, split)
    assert found.status == "clean"
    assert board(found, replace(oral, grouping=PATIENT_UNKNOWN)) == "flagged"


def test_our_encoder_is_clean_on_what_it_was_trained_beside(oral: Dataset, split: Split) -> None:
    train_K = split.indices("train")
    finished("good", data=[oral.sources[k] for k in train_K], pretraining=[ImageNet], seen=Seen.of(oral, train_K))
    assert status(Origin(run="good"), oral, split) == leakage.Leakage("clean")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_our_encoder_overlaps_with_a_group_that_it_has_seen(oral: Dataset, split: Split, part: str) -> None:
    tested = split.indices(part)[:1]
    index_K = np.concatenate([split.indices("train"), tested])
    seen = Seen.of(oral, index_K)
    finished("bad", seen=replace(seen, hashes=()))
    found = status(Origin(run="bad"), oral, split)
    assert found.status == "overlap"
    assert "bad has seen 1 of " in found.reasons[0]
    assert len(found.reasons) == 1


def test_our_encoder_overlaps_with_a_picture_that_it_has_seen_under_another_name(oral: Dataset, split: Split) -> None:
    tested = split.indices("test")[:2]
    flipped = tuple(f"{value ^ np.uint64(0b101):016x}" for value in oral.hashes()[tested])
    finished("copied", seen=Seen({"other": ("a",)}, flipped))
    found = status(Origin(run="copied"), oral, split)
    assert found.status == "overlap"
    assert found.reasons == ("copied has seen 2 picture(s) that oral is tested on, or near-duplicates",)
    unlike = tuple(f"{value ^ np.uint64(0b111111100000):016x}" for value in oral.hashes()[tested])
    finished("unlike", seen=Seen({}, unlike))
    assert status(Origin(run="unlike"), oral, split).status == "clean"


def test_a_manifest_of_before_is_judged_by_its_files(oral: Dataset, split: Split) -> None:
    train, test = split.indices("train"), split.indices("test")
    finished("old-clean", data=[oral.sources[k] for k in train])
    assert status(Origin(run="old-clean"), oral, split).status == "clean"
    finished("old", data=[oral.sources[k] for k in [*train, test[0]]])
    found = status(Origin(run="old"), oral, split)
    assert found.status == "overlap"
    assert "1 of " in found.reasons[0]
    moved = replace(oral.sources[test[0]], file="elsewhere/1.jpg")
    finished("moved", data=[moved])
    assert status(Origin(run="moved"), oral, split).status == "overlap"


def test_a_patient_of_tcga_is_the_same_in_every_set(oral: Dataset, split: Split) -> None:
    barcodes = np.array([f"TCGA-AA-{int(group[-2:]):04}" for group in oral.groups_N])
    tested = int(split.indices("test")[0])
    seen = {"seg_other": (f"{barcodes[tested]}-01Z-00-DX1",)}
    finished("elsewhere", seen=Seen(seen, ()))
    assert status(Origin(run="elsewhere"), replace(oral, groups_N=barcodes), split).status == "overlap"
    assert status(Origin(run="elsewhere"), oral, split).status == "clean"


# 3. What was distilled or fine-tuned inherits.


def test_what_an_encoder_inherits_is_passed_on(oral: Dataset, split: Split) -> None:
    cards = {
        "student": Origin((), ("teacher",)),
        "teacher": Origin(("ImageNet-1k",), ("first", "student")),  # a circle ends
        "first": Origin(("Oral OSCC",)),
    }
    found = status(cards["student"], oral, split, cards.__getitem__)
    assert found.status == "overlap"
    assert found.reasons == ("first was trained on Oral OSCC, which holds the images of oral",)
    cards["first"] = Origin(("undisclosed",))
    assert status(cards["student"], oral, split, cards.__getitem__).status == "unknown"


def test_the_registered_cards_pass_on_what_their_teachers_saw(oral: Dataset, split: Split) -> None:
    at_tcga = replace(oral, known_as=("TCGA",))
    for name in ("gpfm", "phikon", "ctranspath", "chief", "mstar", "musk", "phikon-v2"):
        assert status(leakage.of_card(name), at_tcga, split).status == "overlap", name
    assert any("phikon" in reason for reason in status(leakage.of_card("gpfm"), at_tcga, split).reasons)
    assert status(leakage.of_card("lite0"), at_tcga, split).status == "clean"


def test_a_run_inherits_from_the_runs_it_starts_from(oral: Dataset, split: Split) -> None:
    teacher = finished("teacher", seen=Seen.of(oral, split.indices("test")[:3]))
    middle = finished("middle", starts_from={"expert": teacher})
    finished("student", starts_from={"student": middle}, seen=Seen.of(oral, split.indices("train")))
    found = status(Origin(run="student"), oral, split)
    assert found.status == "overlap"
    assert all(reason.startswith("teacher has seen") for reason in found.reasons)


def test_a_run_that_cannot_be_asked_is_unknown(oral: Dataset, split: Split) -> None:
    assert status(Origin(run="absent"), oral, split).status == "unknown"
    teacher = finished("teacher")
    finished("student", starts_from={"expert": replace(teacher, manifest={**teacher.manifest, "weights_sha256": "0"})})
    found = status(Origin(run="student"), oral, split)
    assert found.status == "unknown"
    assert "trained again" in found.reasons[0]


def test_what_published_weights_were_trained_on_counts(oral: Dataset, split: Split) -> None:
    finished("tuned", pretraining=[replace(ImageNet, trained_on="Oral OSCC")])
    assert status(Origin(run="tuned"), oral, split).status == "overlap"


# 4. Everything fitted is fitted on training rows: test_survival_protocol.py (components, bins).
# 5. The test part is read once, after selection: test_protocols.py.

# 7. Near-duplicates and exact copies do not stand on two sides.


def test_near_duplicates_on_two_sides_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.Made(tmp_path / "made")
    made.oral(folder, groups=10, each=1)
    twin = np.clip(folder.mosaic(224, 224).astype(int), 0, 245).astype(np.uint8)
    for number in range(2):
        folder.image(
            f"he_oral/images/twin_{number}.jpg", twin + np.uint8(5 * number), folder.rows[0]["label"], f"t{number}"
        )
    rows = [{"file": row["path"].removeprefix("he_oral/"), "magnification": "100x"} for row in folder.rows]
    folder.table("he_oral/labels.csv", rows)
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    dataset = load("oral")
    found = held_out(dataset, allow_missing=True)
    require_disjoint(dataset, found)
    parts_N = found.parts_N.copy()
    parts_N[-2:] = ["train", "test"]
    with pytest.raises(LeakageRefused, match=r"1 pair\(s\) of near-duplicate images"):
        require_disjoint(dataset, replace(found, parts_N=parts_N))


# 8. Results of another split are refused: test_leaderboard.py; here, another split has another digest.


def test_another_split_or_task_has_another_digest(oral: Dataset, split: Split) -> None:
    again = load("oral")
    assert held_out(again).sha256 == split.sha256
    assert held_out(oral.merge({"any": list(oral.classes)})).sha256 != split.sha256
    parts_N = split.parts_N.copy()
    parts_N[oral.groups_N == oral.groups_N[0]] = "test" if parts_N[0] == "train" else "train"
    assert digest(oral, split.groups_N, parts_N) != split.sha256


def test_reasons_name_no_file(oral: Dataset, split: Split) -> None:
    source = Source("he_oral/images/00_0.jpg", "made", "0" * 64, "CC0", "A", "", "oral_00")
    finished("any", data=[source], seen=Seen.of(oral, np.arange(len(oral))))
    for reason in status(Origin(run="any"), oral, split).reasons:
        assert "/" not in reason
