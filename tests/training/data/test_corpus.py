"""The corpus holds the train parts and slides, all of tier A, decoded once."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.training.data import made
from training.data import corpus
from training.data.common import decode_jpeg
from training.data.corpus import TILE_PX, describe, he_corpus
from training.data.dataset import load
from training.data.split import held_out
from training.errors import DataMissing, TaskInvalid
from training.runs import runs_folder

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def with_slide(made_data: Path, cmu_slide: Path) -> Path:
    shutil.copytree(cmu_slide, made_data / "slides" / "cmu_small_he")
    return made_data


def test_tiles_are_of_train_parts_and_tissue_only(with_slide: Path) -> None:
    found = he_corpus(("oral", "breakhis", "cmu_small_he"))
    assert set(found.sets_N) == {"oral", "breakhis", "cmu_small_he"}
    for name in ("oral", "breakhis"):
        dataset, inside = load(name), found.sets_N == name
        split = held_out(dataset)
        assert set(found.groups_N[inside]) == set(dataset.groups_N[split.indices("train")])
        assert set(found.seen.groups[f"he_{name}"]) == set(found.groups_N[inside])
    assert found.seen.groups["slides"] == ("cmu_small_he",)
    assert (found.sets_N == "breakhis").sum() == 2 * 6  # 280 x 400 px: two tiles across, one down, of six patients
    assert 40 <= (found.sets_N == "cmu_small_he").sum() <= 110
    assert {source.tier for source in found.sources} == {"A"}
    assert found.read(0).shape == (TILE_PX, TILE_PX, 3)
    first = decode_jpeg((with_slide / found.sources[0].file).read_bytes())
    assert np.array_equal(found.read(0), first)
    assert found.name(0) == f"oral/{found.groups_N[0]}/0"


def test_weak_labels_are_phrases_or_nothing(with_slide: Path) -> None:
    found = he_corpus(("oral", "breakhis", "cmu_small_he"))
    assert set(found.labels) == {
        "oral cavity, normal oral epithelium",
        "oral cavity, oral squamous cell carcinoma",
        "breast, fibroadenoma",
        "breast, ductal carcinoma",
        None,
    }


def test_tiles_are_decoded_once_and_again_when_data_or_choice_differ(
    made_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = he_corpus(("breakhis",))
    monkeypatch.setattr(corpus, "_write", None)
    again = he_corpus(("breakhis",))
    assert np.array_equal(first.images_NHWC, again.images_NHWC)
    assert again.sha256 == first.sha256
    with pytest.raises(TypeError):
        he_corpus(("oral",))


def test_a_corpus_that_was_cut_off_is_written_again(made_data: Path) -> None:
    found = he_corpus(("breakhis",))
    path = runs_folder() / "cache" / f"corpus-{found.sha256[:16]}.npy"
    path.with_suffix(".json").unlink()
    path.write_bytes(path.read_bytes()[:1000])
    again = he_corpus(("breakhis",))
    assert len(again) == len(found)
    assert np.array_equal(again.read(5), np.load(path)[5])
    assert [file.name for file in path.parent.iterdir() if re.search(r"\.\d+", file.name)] == []


def test_blank_tiles_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.Made(tmp_path / "data")
    made.oral(folder, groups=8, each=1)
    for number in range(8):
        (folder.root / folder.rows[number]["path"]).unlink()
    labels = [row["label"] for row in folder.rows]
    folder.rows.clear()
    for number, label in enumerate(labels):
        picture = folder.mosaic(224, 224)
        if number % 2:
            picture = np.repeat(picture.mean(2, keepdims=True), 3, 2).astype(np.uint8)  # grey all over
        folder.image(f"he_oral/images/{number:02}_0.jpg", picture, label, f"oral_{number:02}")
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    found = he_corpus(("oral",))
    assert len(found) > 0
    assert all(int(group[-2:]) % 2 == 0 for group in found.groups_N)


def test_what_it_holds_is_printed(with_slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = describe(he_corpus(("breakhis", "cmu_small_he")))
    assert re.search(r"breakhis +12 +6\n", text)
    assert "CC0 (tier A)" in text
    assert "breast, fibroadenoma" in text
    assert corpus.main() == 1  # the made folder lacks most sets
    assert capsys.readouterr().err == "The data folder holds no he_crc9 set. Fetch the data again.\n"


def test_other_names_and_absent_slides_are_refused(made_data: Path) -> None:
    with pytest.raises(TaskInvalid, match="'monuseg'"):
        he_corpus(("monuseg",))
    with pytest.raises(DataMissing, match="metaplasia_he"):
        he_corpus(("metaplasia_he",))


def test_a_place_that_cannot_be_written_ends_in_one_sentence(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "file"))
    monkeypatch.setattr(corpus, "HE_SETS", ("oral",))
    monkeypatch.setattr(corpus, "HE_SLIDES", {})
    assert corpus.main() == 1
    assert capsys.readouterr().err == "The corpus cannot be written: Not a directory.\n"
