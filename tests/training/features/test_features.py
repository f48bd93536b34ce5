"""Slides to feature files: the contract of the files, and what damaged slides, kills and other encoders do to them."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import pytest

from exporters.gates import onnx_runtime
from gateway.inference import ModelRepository
from gateway.operations.errors import DiskFull
from gateway.slides import Slide, TilePlan, find_tissue, plan_tiles
from gateway.slides.phantom import write_phantom
from tests.training.features.conftest import NATIVE, Compute
from training.features import extract, files
from training.features.__main__ import main
from training.features.embedders import Embedder
from training.features.errors import FeaturesInvalid, FeaturesMixed
from training.features.job import Job
from training.pathbench.encoders import build

pytestmark = pytest.mark.training

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def both(out: Path) -> dict[str, files.Features]:
    return {path.stem: files.read(path) for path in sorted(out.glob("*.h5"))}


@pytest.fixture(scope="module")
def whole(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of both slides, computed from the command line."""
    out = tmp_path_factory.mktemp("whole") / "out"
    arguments = ["--slides", str(slides), "--encoder", "colour-histogram", "--out", str(out), "--profile", "native"]
    assert main(arguments) == 0
    return out


def test_rows_are_the_tiles_that_are_served_in_row_major_order(slides: Path, whole: Path) -> None:
    encoder = build("colour-histogram", profile="native")
    for folder in ("a", "b"):
        with Slide.open(sorted((slides / folder).glob("*.dcm"))) as slide:
            plan = plan_tiles(slide, find_tissue(slide), mpp=encoder.meta.mpp, tile_px=encoder.meta.tile_px)
            features, picture = files.read(whole / f"{slide.header.series_uid}.h5"), slide.read_level(0)
            finest = slide.levels[0].mpp
        field_px = round(encoder.meta.tile_px * encoder.meta.mpp / finest)
        order = np.lexsort((plan.columns_N, plan.rows_N))
        places = np.stack([plan.columns_N, plan.rows_N], 1)[order]
        assert features.coords_N2.tolist() == (places * field_px).tolist()
        assert features.features_ND.dtype == np.float32
        if folder == "a":  # level 0 is the model's resolution: nothing is resampled
            inside = [k for k, (x, y) in enumerate(features.coords_N2) if x + field_px <= 2100 and y + field_px <= 1500]
            tiles = [picture[y : y + field_px, x : x + field_px] for x, y in features.coords_N2[inside]]
            np.testing.assert_array_equal(features.features_ND[inside], encoder.embed(tiles))
    assert not (whole / ".features").exists()


def test_the_file_says_how_it_was_made(whole: Path) -> None:
    meta = build("colour-histogram", profile="native").meta
    for path in whole.glob("*.h5"):
        record = files.read_record(path)
        assert (record.encoder, record.checksum, record.transform) == (meta.id, meta.checksum, meta.transform)
        assert record.profile == "native, pb"
        assert (record.tile_px, record.tile_um) == (meta.tile_px, meta.field_um)
        with h5py.File(path) as file:
            assert file.attrs["series_uid"] == path.stem
            assert file.attrs["field_px"] == round(meta.field_um / file.attrs["level_0_mpp"])


def test_any_number_of_workers_gives_the_same_bits(
    slides: Path, whole: Path, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, extracted, deadline = set(), extract.extract, time.monotonic() + 120

    def other_has_computed(parts: Path) -> bool:
        with suppress(FileNotFoundError):  # a slide that is whole takes its parts away, whoever looks at them
            return bool(set(parts.glob("*/*.json")) - own) or any(parts.parent.glob("*.h5"))
        return False

    def after_the_other(
        slide: Slide, plan: TilePlan, shard: extract.Shard, embedder: Embedder, turn: threading.Lock
    ) -> None:
        """This process computes nothing until the other one has."""
        own.add(shard.tiles)
        while not other_has_computed(shard.folder.parent):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        extracted(slide, plan, shard, embedder, turn)

    monkeypatch.setattr("training.features.job.extract", after_the_other)
    progress = compute(slides, tmp_path / "out", workers=2)
    assert (progress.written, progress.failed) == (2, {})
    for series, features in both(tmp_path / "out").items():
        np.testing.assert_array_equal(features.features_ND, both(whole)[series].features_ND)
        np.testing.assert_array_equal(features.coords_N2, both(whole)[series].coords_N2)


def test_a_second_run_writes_nothing(slides: Path, whole: Path, compute: Compute) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.glob("*.h5")}
    progress = compute(slides, whole)
    assert (progress.kept, progress.written) == (2, 0)
    assert {path.name: path.stat().st_mtime_ns for path in whole.glob("*.h5")} == before


def test_a_killed_job_goes_on_where_it_stopped(
    slides: Path, whole: Path, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    job = Job(slides=slides, encoder="colour-histogram", out=out, options=NATIVE, shard_tiles=4)
    slow = (
        "import sys, time; from pathlib import Path; from gateway.operations.settings import settings;"
        "from training.features import extract, job, run; whole = extract._features;"
        "extract._features = lambda *given: (time.sleep(0.5), whole(*given))[1];"
        "run.run(job.Job.model_validate_json(sys.argv[1]), settings(), 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, job.model_dump_json()])
    try:
        deadline = time.monotonic() + 120
        while len(done := sorted(job.work.glob("*/*.json"))) < 1:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    computed: list[tuple[str, int]] = []
    extracted = extract.extract
    monkeypatch.setattr(
        "training.features.job.extract",
        lambda slide, plan, shard, *further: (
            computed.append((shard.series, shard.first)),
            extracted(slide, plan, shard, *further),
        ),
    )
    compute(slides, out)
    assert computed
    assert not {(path.parent.name, int(path.stem)) for path in done} & set(computed)
    for series, features in both(out).items():
        np.testing.assert_array_equal(features.features_ND, both(whole)[series].features_ND)


def test_a_full_disk_ends_the_job_and_not_the_slide(
    slides: Path, whole: Path, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what the end of the job does to a shard that stands at its turn meanwhile."""
    written, asked = extract.written_whole, []
    extracted, begun, at_turn, over = extract.extract, [], threading.Event(), threading.Event()

    def one_after_the_end(*given: Any) -> None:
        """The second shard meets the full disk while the third one stands by; that one gets its turn when all is
        over."""
        begun.append(threading.current_thread())
        number = len(begun)
        if number == 2:
            assert at_turn.wait(60)
        if number == 3:
            at_turn.set()
            assert over.wait(60)
        extracted(*given)

    def full_at_the_third(target: Path) -> AbstractContextManager[BinaryIO]:
        asked.append(target)
        if len(asked) == 3:
            raise OSError(errno.ENOSPC, "full")
        return written(target)

    monkeypatch.setattr(extract, "written_whole", full_at_the_third)
    monkeypatch.setattr("training.features.job.extract", one_after_the_end)
    with pytest.raises(DiskFull):
        compute(slides, tmp_path / "out")
    over.set()
    begun[2].join(60)
    assert not begun[2].is_alive()
    assert not list(tmp_path.glob("out/.features/*/failed.txt"))
    progress = compute(slides, tmp_path / "out")
    assert (progress.written + progress.kept, progress.failed) == (2, {})
    for series, features in both(tmp_path / "out").items():
        np.testing.assert_array_equal(features.features_ND, both(whole)[series].features_ND)


def test_other_features_are_not_added_to_a_folder(slides: Path, whole: Path, compute: Compute) -> None:
    with pytest.raises(FeaturesMixed, match=r"another encoder \(colour-histogram, not lbp\)"):
        compute(slides, whole, encoder="lbp")


def test_files_that_differ_are_not_read_together(whole: Path, tmp_path: Path) -> None:
    paths = []
    for path in sorted(whole.glob("*.h5")):
        paths.append(tmp_path / path.name)
        paths[-1].write_bytes(path.read_bytes())
    assert len(list(files.read_all(paths))) == 2
    with h5py.File(paths[1], "a") as file:
        file.attrs["transform"] = "squash 224"
    with pytest.raises(FeaturesMixed, match="another transform"):
        list(files.read_all(paths))
    with h5py.File(paths[1], "a") as file:
        del file.attrs["checksum"]
    with pytest.raises(FeaturesInvalid, match="does not say its checksum"):
        list(files.read_all(paths))


def test_tiles_that_cannot_be_read_are_left_out_and_named(own_slides: Path, whole: Path, compute: Compute) -> None:
    path = max((own_slides / "a").glob("level-*.dcm"), key=lambda path: path.stat().st_size)
    out = own_slides.parent / "out"
    with Slide.open(sorted((own_slides / "a").glob("*.dcm"))) as slide:
        series, image = slide.header.series_uid, slide.image(0)
        good = files.read(whole / f"{series}.h5")
        frame_px = image.level.frame_width_px
        column, row = good.coords_N2[len(good.coords_N2) // 2] // frame_px
        (frame,) = image.read_frames([int(image.frame_at_RC[row, column])])
        content = path.read_bytes()
        place = content.index(bytes(frame))
    path.write_bytes(content[: place + 200] + bytes(len(frame) - 200) + content[place + len(frame) :])
    progress = compute(own_slides, out)
    found, field_px = files.read(out / f"{series}.h5"), good.record.tile_px
    touches = [
        column * frame_px < x + field_px
        and x < (column + 1) * frame_px
        and row * frame_px < y + field_px
        and y < (row + 1) * frame_px
        for x, y in good.coords_N2
    ]
    kept = ~np.array(touches)
    assert 0 < sum(touches) == progress.unreadable
    np.testing.assert_array_equal(found.coords_N2, good.coords_N2[kept])
    np.testing.assert_array_equal(found.features_ND, good.features_ND[kept])
    with h5py.File(out / f"{series}.h5") as file:
        assert sorted(map(tuple, file["unreadable"][:])) == sorted(map(tuple, good.coords_N2[touches]))
    lines = [json.loads(line) for line in (out / "features.jsonl").read_text().splitlines()]
    named = [(line["x_px"], line["y_px"]) for line in lines if line["event"] == "unreadable tile"]
    assert sorted(named) == sorted(map(tuple, good.coords_N2[touches].tolist()))


def test_a_slide_without_tissue_has_a_file_without_rows(compute: Compute, tmp_path: Path) -> None:
    truth = write_phantom(tmp_path / "slides", width_px=1100, height_px=800, tissue=False)
    assert compute(tmp_path / "slides", tmp_path / "out").written == 1
    features = files.read(tmp_path / "out" / f"{truth.series_uid}.h5")
    assert features.features_ND.shape[0] == 0
    assert features.features_ND.shape[1] > 1
    with h5py.File(tmp_path / "out" / f"{truth.series_uid}.h5") as file:
        assert "No tissue" in file.attrs["remark"]


def test_a_slide_that_cannot_be_read_does_not_keep_the_others(
    own_slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_slides / "b").rename(own_slides / "coarse")
    write_phantom(own_slides / "b", width_px=1100, height_px=800, mpp=3.0)
    out = tmp_path / "out"
    arguments = ["--slides", str(own_slides), "--encoder", "colour-histogram", "--out", str(out)]
    assert main(arguments) == 1
    assert len(list(out.glob("*.h5"))) == 2
    assert "finest level has 3 µm per pixel" in capsys.readouterr().err
    assert "slide failed" in (out / "features.jsonl").read_text()


def test_two_jobs_do_not_fill_one_folder(slides: Path, compute: Compute, tmp_path: Path) -> None:
    from gateway.operations.disk import locked_folder

    job = Job(slides=slides, encoder="colour-histogram", out=tmp_path / "out")
    job.work.mkdir(parents=True)
    with locked_folder(job.work), pytest.raises(FeaturesInvalid, match="Another process fills"):
        compute(slides, tmp_path / "out")


def test_a_served_model_gives_what_its_graph_gives(slides: Path, compute: Compute, tmp_path: Path) -> None:
    assert compute(slides / "a", tmp_path / "out", encoder="tile_encoder").written == 1
    (features,) = both(tmp_path / "out").values()
    with Slide.open(sorted((slides / "a").glob("*.dcm"))) as slide:
        picture = slide.read_level(0)
    x, y = next((x, y) for x, y in features.coords_N2 if x + 224 <= picture.shape[1] and y + 224 <= picture.shape[0])
    engine = onnx_runtime((REPOSITORY / "tile_encoder" / "1" / "model.onnx").read_bytes())
    (due,) = engine({"image": picture[None, y : y + 224, x : x + 224]})["embedding"]
    row = features.coords_N2.tolist().index([x, y])
    np.testing.assert_array_equal(features.features_ND[row], due)
    card = ModelRepository(REPOSITORY).card("tile_encoder")
    assert features.record.checksum == card.version.engine_sha256
    assert (features.record.tile_px, features.record.tile_um) == (224, 112.0)
    # The same weights by PyTorch, as a registered encoder.
    assert compute(slides / "a", tmp_path / "registered", encoder="tile-encoder").written == 1
    (registered,) = both(tmp_path / "registered").values()
    np.testing.assert_array_equal(registered.coords_N2, features.coords_N2)
    np.testing.assert_allclose(registered.features_ND, features.features_ND, rtol=1e-3, atol=1e-3)


def test_a_model_that_is_no_encoder_is_refused(slides: Path, compute: Compute, tmp_path: Path) -> None:
    with pytest.raises(FeaturesInvalid, match="of the kind head"):
        compute(slides, tmp_path / "out", encoder="tissue_head")
