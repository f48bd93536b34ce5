"""A corrupt model is refused by its name, with the reason, and never answers; the others serve on."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from gateway.inference import ModelRepository
from gateway.operations.errors import ModelRefused
from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.e2e.conftest import Cli
from tests.support.gateway import Gateway, case_of, eventually, running_gateway
from tests.support.models import add_model, change_engine, read, seal, without_slide_heads, write

ENCODER, HEAD, ENSEMBLE = "tile_encoder", "tissue_head", "tissue_classification"
MODELS = (ENCODER, HEAD, ENSEMBLE)


def flip(folder: Path) -> None:
    """One bit in the middle of the weights."""
    (artefact,) = folder.glob("*/model.onnx")
    data = bytearray(artefact.read_bytes())
    data[len(data) // 2] ^= 1
    artefact.write_bytes(data)


def truncate(pattern: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (file,) = folder.glob(pattern)
        os.truncate(file, file.stat().st_size // 2)

    return cut


def swap_labels(folder: Path) -> None:
    """The first two labels change places; the file is as valid as it was."""
    card = read(folder, "card.json")
    first, second = card["labels"][:2]
    for key in ("code", "exploratory", "color"):
        first[key], second[key] = second[key], first[key]
    write(folder, "card.json", card)


def normalise_wrongly(model: onnx.ModelProto) -> None:
    """The constant that is taken from every pixel is 120, not 127."""
    subtract = next(node for node in model.graph.node if node.op_type == "Sub")
    constant = next(node for node in model.graph.node if node.output[0] == subtract.input[1])
    mean = constant.attribute[0].t
    assert numpy_helper.to_array(mean).item() == 127
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) - 7, mean.name))


def normalise_wrongly_and_seal(folder: Path) -> None:
    """As if it had been exported so: every digest is right, and golden.npz alone is as it was."""
    golden = (folder / "golden.npz").read_bytes()
    change_engine(folder, normalise_wrongly)
    seal(folder)
    assert (folder / "golden.npz").read_bytes() == golden


@dataclass(frozen=True)
class Corruption:
    """What is done to a model's folder, to which models, and words of the reason."""

    name: str
    models: tuple[str, ...]
    corrupt: Callable[[Path], None]
    words: str


OF_FILES = (
    Corruption("flipped", (ENCODER, HEAD), flip, "its engine is not the one that its card names"),
    Corruption("cut_engine", (ENCODER, HEAD), truncate("*/model.onnx"), "its engine is not the one"),
    Corruption(
        "normalised", (ENCODER,), lambda folder: change_engine(folder, normalise_wrongly), "its engine is not the one"
    ),
    Corruption(
        "swapped", (HEAD, ENSEMBLE), swap_labels, r"its card\.json is not the one that its provenance\.json names"
    ),
    Corruption("cut_card", MODELS, truncate("card.json"), r"its card\.json is not the one"),
    Corruption("cut_config", MODELS, truncate("config.pbtxt"), r"its config\.pbtxt is not the one"),
    Corruption("cut_golden", MODELS, truncate("golden.npz"), r"its golden\.npz is not the one"),
    Corruption("cut_gate", MODELS, truncate("gate.json"), r"its gate\.json is not as agreed"),
    Corruption("cut_provenance", MODELS, truncate("provenance.json"), r"its provenance\.json is not as agreed"),
    Corruption("parsed", MODELS, lambda folder: seal(folder, state="PARSED"), "it was never executed"),
)
BY_ANSWERS = Corruption(
    "resealed", (ENCODER,), normalise_wrongly_and_seal, r"its answers to golden\.npz are not the exporter's"
)
EVERY = [(each, model) for each in (*OF_FILES, BY_ANSWERS) for model in each.models]


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the committed repository, as it is."""
    return shutil.copytree(Settings().model_repository, tmp_path_factory.mktemp("committed") / "repository")


@pytest.mark.parametrize(
    ("corruption", "model"),
    [(each, model) for each in OF_FILES for model in each.models],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_corrupt_file_is_refused_by_the_models_name(
    committed: Path, tmp_path: Path, corruption: Corruption, model: str
) -> None:
    shutil.copytree(committed, tmp_path / "repository")
    corruption.corrupt(tmp_path / "repository" / model)
    repository = ModelRepository(tmp_path / "repository")
    with pytest.raises(ModelRefused, match=f"^The model {model} is refused: .*{corruption.words}"):
        repository.check(model)
    # An ensemble is no better than its steps; a step knows nothing of its ensemble.
    for other in {ENCODER, HEAD} - {model}:
        assert repository.check(other).name == other
    if model != ENSEMBLE:
        with pytest.raises(ModelRefused, match=model):
            repository.check(ENSEMBLE)


@pytest.fixture(scope="module")
def corrupt(committed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models of one protocol, and beside them every corruption of each, as models of their own names."""
    folder = without_slide_heads(committed, tmp_path_factory.mktemp("corrupt") / "repository")
    for corruption, model in EVERY:
        corruption.corrupt(add_model(folder, model, f"{corruption.name}_{model}"))
    return folder


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "slide"
    write_phantom(folder, kind="he", width_px=1024, height_px=1024, seed=11)
    return folder


@pytest.fixture(scope="module")
def gateway(corrupt: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    state = tmp_path_factory.mktemp("work") / "state"
    archive = f"folder:{slide.parent}"
    with running_gateway(state, archive, PATHSERVE_MODEL_REPOSITORY=str(corrupt)) as gateway:
        yield gateway


def refused(gateway: Gateway) -> set[str]:
    return set(gateway.request("GET", "/readyz").json()["refused"])


def models(gateway: Gateway) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in gateway.request("GET", "/v1/models").json()["items"]}


@pytest.mark.triton
def test_a_server_names_every_corrupt_model_and_serves_with_the_others(
    gateway: Gateway, corrupt: Path, slide: Path
) -> None:
    names = {f"{corruption.name}_{model}" for corruption, model in EVERY}
    eventually(lambda: refused(gateway) == names, "/readyz names each corrupt model and no other")
    assert gateway.request("GET", "/readyz").status_code == 200
    shown = models(gateway)
    for corruption, model in EVERY:
        item = shown[f"{corruption.name}_{model}"]
        assert not item["ready"]
        assert re.search(corruption.words, item["reason"]), item
        assert not re.search(r"(?<![\w.])/\w", item["reason"]), "paths are for logs"
    assert {name for name, item in shown.items() if item["ready"]} == {
        path.parent.name for path in corrupt.glob("*/card.json")
    } - names
    analysis = gateway.finish(gateway.order(case_of(slide)))
    assert analysis["state"] == "completed", analysis


@pytest.mark.triton
def test_the_doctor_names_every_corrupt_model(gateway: Gateway, corrupt: Path) -> None:
    environment = {"PATHSERVE_ARCHIVE": gateway.archive, "PATHSERVE_MODEL_REPOSITORY": str(corrupt)}
    ran = Cli(gateway.state, environment)("doctor", timeout_s=60)
    assert ran.returncode == 1
    failing = dict(re.findall(r"^FAIL (?:model|loaded) (\S+): (.*)$", ran.stdout, re.MULTILINE))
    for corruption, model in EVERY:
        if corruption.name == "parsed":
            assert re.search(rf"ok +model parsed_{model}: .*PARSED, not approved", ran.stdout), ran.stdout
        else:
            assert re.search(corruption.words, failing[f"{corruption.name}_{model}"]), ran.stdout
    for model in MODELS:
        assert re.search(rf"ok +model {model}: .* version 1, onnx fp32, APPROVED", ran.stdout), ran.stdout


@pytest.mark.triton
def test_a_model_corrupted_under_a_running_server_is_never_used(gateway: Gateway, corrupt: Path, slide: Path) -> None:
    files = [corrupt / ENSEMBLE / "card.json", corrupt / ENCODER / "1" / "model.onnx"]
    right = {file: file.read_bytes() for file in files}
    swap_labels(corrupt / ENSEMBLE)
    # At once, whatever the server has noticed of it.
    analysis = gateway.finish(gateway.order(case_of(slide)))
    assert (analysis["state"], analysis["failure"]["reason"]) == ("failed", ModelRefused.reason), analysis
    assert ENSEMBLE in analysis["failure"]["detail"]
    assert gateway.request("GET", f"/v1/analyses/{analysis['id']}/report").status_code == 409
    flip(corrupt / ENCODER)
    eventually(lambda: {ENCODER, ENSEMBLE} <= refused(gateway), "/readyz names the models", 30)
    eventually(lambda: gateway.request("GET", "/readyz").status_code == 503, "no protocol is left")
    shown = models(gateway)
    assert "card.json" in shown[ENSEMBLE]["reason"]
    assert "engine" in shown[ENCODER]["reason"]
    assert shown[HEAD]["ready"]
    for file, data in right.items():
        file.write_bytes(data)
    eventually(lambda: gateway.request("GET", "/readyz").status_code == 200, "the models serve again", 40)
    assert gateway.finish(gateway.order(case_of(slide)))["state"] == "completed"
