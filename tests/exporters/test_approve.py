"""G6: a TensorRT artefact is approved by a GPU's record that speaks of the very same thing, and by nothing else.

There is no GPU here: the plan is eleven bytes, and the record is the committed one of another GPU run with a TensorRT
row of the shape that gpu-check writes. What is tested is which records are believed.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters import __main__ as command
from exporters import approve as approving
from exporters import ensembles, shapes
from exporters.approve import GPU_CHECK, approve
from exporters.card import build_card
from exporters.errors import ExportError
from exporters.model_folder import ModelFolder
from exporters.page import page
from exporters.provenance import sealed
from exporters.targets import engine_digest
from exporters.tensorrt_config import TensorRtConfig
from exporters.verdict import not_run
from gateway.inference import ModelRepository
from gateway.operations.errors import ModelRefused
from tests.exporters.conftest import REPOSITORY, ROOT
from tests.exporters.test_versions import sidecars, tree
from training.files import json_bytes
from training.graphs import Graph

pytestmark = pytest.mark.training

FOLDER, ENSEMBLE = "tile_encoder-v2", "tissue_classification-v2"
PLAN = b"not a plan\n"
TENSORRT, CAPABILITY = "11.4.0.106", "9.0"
TEXTS = ("title", "mpp", "tile_px", "labels", "operating_points", "intended_use", "limits", "data")
TEXTS += ("pretraining", "metrics", "embedding_size")


@pytest.fixture
def built(tmp_path: Path, encoder_graph: Graph) -> Path:
    """The committed repository with an encoder for TensorRT that waits for its approval, and its ensemble."""
    repository = shutil.copytree(REPOSITORY, tmp_path / "repository")
    base, gate, origin = sidecars(repository / "tile_encoder")
    card = build_card(
        model="tile_encoder",
        version="2",
        kind="encoder",
        target="tensorrt",
        precision="fp16",
        texts={key: base[key] for key in TEXTS},
        digests=base["digests"] | {"engine_sha256": engine_digest({"model.plan": PLAN})},
        golden_tolerance=base["golden_tolerance"],
        not_executed="The plan's answers have not been compared.",
    )
    config = TensorRtConfig(
        name=FOLDER,
        inputs=encoder_graph.inputs,
        outputs=encoder_graph.outputs,
        max_batch_size=encoder_graph.max_batch_size,
        profile=shapes.profile(encoder_graph),
    )
    beside = {"2/timing.cache": b"cache", "config.pbtxt": config.text().encode()}
    beside["golden.npz"] = (repository / "tile_encoder" / "golden.npz").read_bytes()
    kept = {key: origin[key] for key in ("opset", "onnx_sha256", "git_commit", "starts_from")}
    files = sealed(card, beside, **kept, calibration=None, made_with=origin["tools"])
    g2 = {"package": "tensorrt", "version": TENSORRT, "gpu": {"name": "NVIDIA H200", "compute_capability": CAPABILITY}}
    gates = [entry for entry in gate["gates"] if entry["gate"] in ("G0", "G1")]
    onnx_alone = next(entry["figures"] for entry in gate["gates"] if entry["gate"] == "G4")
    folder = ModelFolder(
        folder=FOLDER,
        card=card,
        files={"2/model.plan": PLAN, **files},
        gates=[
            *gates,
            {"gate": "G2", "passed": True, "figures": g2},
            not_run("G3", "It cannot run here."),
            not_run("G4", "The engine was not run.") | {"figures": {"onnx": onnx_alone}},
            not_run("G5", "There is no GPU."),
        ],
        state="BUILT",
        reduced=False,
        questions=[],
    )
    folder.write(repository)
    plan = ensembles.Plan("tissue_classification", "Tissue", (FOLDER, "tissue_head"))
    ensembles.make(plan, repository, repository, {}).write(repository)
    for name in (FOLDER, ENSEMBLE):
        ModelRepository(repository).verify(name)
    return repository


@pytest.fixture
def record() -> dict[str, Any]:
    """The committed record of a GPU run, with an approved TensorRT engine."""
    document = json.loads((ROOT / "docs" / "results" / "gpu-check.json").read_bytes())
    row = next(row for row in document["artefacts"] if row["state"] == "APPROVED")
    document["artefacts"] = [row | {"stage": "tensorrt", "artefact": "tensorrt fp16", "precision": "fp16"}]
    document["runtimes"] = [{"stage": "tensorrt", "package": "tensorrt", "version": TENSORRT}]
    document["onnx_parity"][0]["onnx_sha256"] = sidecars(REPOSITORY / "tile_encoder")[2]["onnx_sha256"]
    scripts = b"".join(path.read_bytes() for path in sorted(GPU_CHECK.glob("*.py")))
    document["scripts_sha256"] = hashlib.sha256(scripts).hexdigest()
    return document


def judged(record: dict[str, Any]) -> dict[str, Any]:
    gates: dict[str, Any] = record["artefacts"][0]["gates"]
    return gates


def written(path: Path, record: dict[str, Any]) -> Path:
    path.write_bytes(json_bytes(record))
    return path


def test_what_waits_is_not_served(built: Path) -> None:
    assert not ModelRepository(built).gate(FOLDER).approved
    card, gate, _ = sidecars(built / ENSEMBLE)
    assert (card["target"], card["not_executed"]) == ("tensorrt", "The plan's answers have not been compared.")
    assert gate["state"] == "BUILT"
    made = page(built)
    assert "No TensorRT plan was ever built" not in made
    assert f"- `{FOLDER}`: The plan's answers have not been compared." in made


def test_a_record_approves_the_engine_and_its_ensemble(
    built: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "gpu-check.json", record)
    before = tree(built)
    assert command.main(["approve", str(built / FOLDER), "--gpu-check", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{built}/{FOLDER}", f"{built}/{ENSEMBLE}"]
    models = ModelRepository(built)
    for folder in (FOLDER, ENSEMBLE):
        models.check(folder)
        assert models.gate(folder).state == "APPROVED"
        assert "not_executed" not in models.document(folder)
    entries = sidecars(built / FOLDER)[1]["gates"]
    assert [entry["gate"] for entry in entries] == ["G0", "G1", "G2", "G3", "G4", "G5", "G6"]
    assert [entry["passed"] for entry in entries] == [True, True, True, True, True, None, True]
    judged, g6 = record["artefacts"][0]["gates"], entries[-1]
    assert entries[3]["figures"] == judged["G3"]
    assert entries[4]["figures"]["engine"] == judged["G4"]
    assert entries[4]["figures"]["onnx"]["neighbours"] == 0.0
    assert g6["figures"]["gpu"]["name"] == record["machine"][0]["gpu"]
    assert g6["figures"]["golden"] == judged["golden"]
    assert g6["figures"]["record_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    changed = {path for path, data in tree(built).items() if before[path] != data}
    assert changed == {f"{name}/{file}.json" for name in (FOLDER, ENSEMBLE) for file in ("card", "gate", "provenance")}
    made = page(built)
    assert "| cosine 1.000000, 0.00% flips | 4.6e-08 | not run |" in made
    assert "never executed" not in made
    with pytest.raises(ExportError, match="is APPROVED: only a plan that was built"):
        approve(built / FOLDER, file)


def test_a_harmed_ensemble_is_not_sealed_anew(
    built: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = built / ENSEMBLE / "card.json"
    card.write_bytes(card.read_bytes().replace(b'"title": "Tissue"', b'"title": "Other"'))
    before = tree(built / ENSEMBLE)
    assert approve(built / FOLDER, written(tmp_path / "gpu-check.json", record)) == [FOLDER]
    assert tree(built / ENSEMBLE) == before
    assert f"{ENSEMBLE} is left as it is. The model {ENSEMBLE} is refused: its card.json" in capsys.readouterr().err


def test_an_approval_that_was_cut_short_is_done_again(
    built: Path, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the folders leaves nothing that is served, and nothing that cannot be approved any more."""
    file, real, published = written(tmp_path / "gpu-check.json", record), approving.publish, []

    def killed_later(staged: Path, target: Path) -> None:
        if published:
            raise KeyboardInterrupt
        published.append(target.name)
        real(staged, target)

    with monkeypatch.context() as patch:
        patch.setattr(approving, "publish", killed_later)
        with pytest.raises(KeyboardInterrupt):
            approve(built / FOLDER, file)
    assert not ModelRepository(built).gate(FOLDER).approved
    with pytest.raises(ModelRefused):
        ModelRepository(built).check(ENSEMBLE)
    assert approve(built / FOLDER, file) == [FOLDER, ENSEMBLE]
    for folder in (FOLDER, ENSEMBLE):
        ModelRepository(built).check(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.update(schema="pathserve-gpu-check-0"), "is not what gpu-check writes"),
        (lambda r: r.update(self_test=True), "is of a self-test"),
        (lambda r: r.update(scripts_sha256="0" * 64), "made by another version of gpu-check"),
        (lambda r: r["artefacts"].clear(), "has no TensorRT engine of tile_encoder in fp16"),
        (lambda r: r["artefacts"][0].update(stage="tensorrt_rtx"), "has no TensorRT engine"),
        (lambda r: r["artefacts"][0].update(precision="bf16"), "has no TensorRT engine"),
        (lambda r: r["artefacts"][0].update(state="BUILT", reason="G3: flips"), "was not approved: G3: flips"),
        (lambda r: r["artefacts"][0].update(tile_encoder_weights_sha256="0" * 64), "another weights"),
        (lambda r: r["onnx_parity"][0].update(onnx_sha256="0" * 64), "another fp32 ONNX"),
        (lambda r: r["onnx_parity"][0].update(failures=["label flips"]), "speak against tile_encoder-v2: label flips"),
        (lambda r: judged(r)["G3"].update(tiles=4999), "4999 tiles are fewer than 5000"),
        (lambda r: judged(r)["G3"].update(flip_share=0.002), r"label flips 0\.20% > 0\.1%"),
        (lambda r: judged(r)["G3"].update(flip_share=float("nan")), "label flips nan%"),
        (lambda r: judged(r)["G3"].update(max_abs_relative=0.3), r"relative difference 3\.00e-01 > 0\.2"),
        (lambda r: judged(r)["G3"].update(min_cosine=0.99), r"worst cosine 0\.990000 < 0\.9995"),
        (lambda r: judged(r)["G3"].update(finite=False), "NaN or infinite values"),
        (lambda r: judged(r)["G4"].update(neighbours=1e-3), "neighbours changes an answer"),
        (lambda r: judged(r)["G3"].pop("finite"), "does not say all"),
        (lambda r: r["runtimes"][0].update(version="10.16"), r"another TensorRT version .*\(10.16, not 11.4"),
        (lambda r: r["machine"][0].update(compute_capability="8.0"), "another compute capability"),
        (lambda r: r.pop("machine"), "does not say all"),
        (lambda r: r.update(onnx_parity=[]), "does not say all"),
        (lambda r: r["artefacts"][0].pop("gates"), "does not say all"),
    ],
)
def test_a_record_of_something_else_approves_nothing(
    built: Path, record: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    changed = copy.deepcopy(record)
    change(changed)
    before = tree(built)
    with pytest.raises(ExportError, match=sentence):
        approve(built / FOLDER, written(tmp_path / "gpu-check.json", changed))
    assert tree(built) == before


def test_the_committed_record_approves_no_tensorrt_artefact(built: Path) -> None:
    with pytest.raises(ExportError, match=r"gpu-check\.json was made by another version|has no TensorRT engine"):
        approve(built / FOLDER, ROOT / "docs" / "results" / "gpu-check.json")


def test_a_file_that_is_no_record_is_refused(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu-check.json").write_text("{")
    for file in ("gpu-check.json", "nowhere.json"):
        assert command.main(["approve", str(built / FOLDER), "--gpu-check", str(tmp_path / file)]) == 1
        assert capsys.readouterr().err == f"{file} cannot be read. Name the JSON that gpu-check wrote.\n"


@pytest.mark.parametrize("state", ["EXPORTED", "PARSED"])
def test_what_was_never_built_is_not_approved(built: Path, record: dict[str, Any], tmp_path: Path, state: str) -> None:
    gate = sidecars(built / FOLDER)[1]
    (built / FOLDER / "gate.json").write_bytes(json_bytes(gate | {"state": state}))
    with pytest.raises(ExportError, match=f"is {state}: only a plan that was built"):
        approve(built / FOLDER, written(tmp_path / "gpu-check.json", record))


def test_an_engine_for_processors_needs_no_gpu(built: Path, record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="tile_encoder is of the target onnx"):
        approve(built / "tile_encoder", written(tmp_path / "gpu-check.json", record))
