"""The backend `openvino` in a real Triton: the same answers as `onnxruntime`, the same whoever stands beside a tile."""

import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import pytest_asyncio

from gateway.inference import TritonEngine, embedded
from gateway.inference.client import CallFailed, Client, Trouble, plain_input
from gateway.inference.installation import find_installation
from gateway.inference.preflight import models_of_openvino
from gateway.operations.settings import Settings
from tests.conftest import ROOT
from tests.support.models import seal

from . import models
from .conftest import embeddings, empty_triton

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]

RELEASED = ROOT / "model_repository" / "tile_encoder"
PARAMETER = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'
LOAD_S = 60.0

_TO_IR = """
import sys, openvino
openvino.save_model(openvino.Core().read_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)
"""


def served_by_openvino(folder: Path, file: str = "model.onnx", **parameters: str) -> Path:
    """Turn a model folder of the backend `onnxruntime` into one of `openvino`."""
    config = folder / "config.pbtxt"
    lines = config.read_text().replace('backend: "onnxruntime"', 'backend: "openvino"')
    lines += f'default_model_filename: "{file}"\n'
    config.write_text(lines + "".join(PARAMETER.format(*parameter) for parameter in parameters.items()))
    return folder


def to_ir(folder: Path) -> Path:
    """Replace a folder's model.onnx by model.xml and model.bin; the environment of the embedded Triton has openvino."""
    file = folder / "1" / "model.onnx"
    python = Settings().triton_venv / "bin" / "python"
    subprocess.run([python, "-c", _TO_IR, file, file.with_suffix(".xml")], check=True, capture_output=True)
    file.unlink()
    return served_by_openvino(folder, "model.xml")


def released_encoder(repository: Path, name: str) -> Path:
    """The committed tile encoder under another name."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    shutil.copy(RELEASED / "1" / "model.onnx", folder / "1")
    config = (RELEASED / "config.pbtxt").read_text().replace('name: "tile_encoder"', f'name: "{name}"', 1)
    (folder / "config.pbtxt").write_text(config)
    return folder


@pytest.fixture(scope="module")
def openvino(installed: None) -> None:
    if not find_installation(Settings().triton_venv).openvino:
        pytest.skip("openvino is not installed beside the embedded Triton")


@pytest.fixture(scope="module")
def folder(openvino: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("model repository")
    released_encoder(repository, "by_onnxruntime")
    served_by_openvino(released_encoder(repository, "by_openvino"))
    models.write_encoder(repository, "small")
    to_ir(models.write_encoder(repository, "ir", count=2))
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    async with empty_triton(Settings(state=tmp_path_factory.mktemp("state"), model_repository=folder)) as connected:
        for model in ("by_onnxruntime", "by_openvino", "small", "ir"):
            await connected.load(model, LOAD_S)
        yield connected


def pictures(count: int, seed: int) -> np.ndarray:
    """(count,224,224,3) uint8: smooth fields of very different brightness and contrast, with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 7, 7, 3)).repeat(32, 1).repeat(32, 2)
    noise = rng.normal(0, 12, (count, 224, 224, 3)) * rng.uniform(0, 2, (count, 1, 1, 1))
    return (coarse * rng.uniform(0.2, 1, (count, 1, 1, 1)) + noise).clip(0, 255).astype(np.uint8)


async def test_the_released_encoder_answers_as_under_onnxruntime(client: Client) -> None:
    images = pictures(16, seed=1)
    ours, reference = await asyncio.gather(
        embeddings(client, "by_openvino", images), embeddings(client, "by_onnxruntime", images)
    )
    assert ours.dtype == np.float32
    scale = np.abs(reference).max()
    # In bfloat16, OpenVINO's own choice on CPUs that have it, the difference would be some thousandths.
    assert np.abs(ours - reference).max() <= 1e-4 * scale


async def test_a_tile_has_the_same_bits_alone_and_in_any_company(client: Client) -> None:
    images = pictures(40, seed=2)
    alone = np.concatenate([await embeddings(client, "by_openvino", images[[place]]) for place in range(0, 40, 8)])
    for chosen in (np.arange(40), np.arange(39, -1, -1), np.arange(0, 40, 8), np.arange(0, 33, 2)):
        together = await embeddings(client, "by_openvino", images[chosen])
        for place, embedding in zip(range(0, 40, 8), alone, strict=True):
            if place in chosen:
                assert np.array_equal(together[list(chosen).index(place)], embedding)
    # Triton makes batches of these, as they come.
    answers = await asyncio.gather(*(embeddings(client, "by_openvino", images[[place]]) for place in range(0, 40, 8)))
    assert np.array_equal(np.concatenate(answers), alone)


async def test_an_ir_answers_as_the_onnx_that_it_came_from(client: Client) -> None:
    sizes = (1, 2, 3, 31, 64, 7)
    batches = [models.tiles(size, seed=size) for size in sizes]
    answers = await asyncio.gather(*(embeddings(client, "ir", images) for images in batches))
    for images, answer in zip(batches, answers, strict=True):
        reference = await embeddings(client, "small", images)
        assert answer.shape == reference.shape
        assert np.abs(answer - reference).max() <= 1e-6 * np.abs(reference).max()


async def test_the_gateway_serves_an_ir_whose_golden_answers_came_from_onnx(openvino: None, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for name, error in (("right", 0.0), ("wrong", 1e-2)):
        folder = models.write_encoder(repository, name)
        models.write_golden(folder, error)
        seal(to_ir(folder))
    async with TritonEngine.open(
        Settings(state=tmp_path / "state", model_repository=repository), ["right", "wrong"]
    ) as engine:
        right, wrong = engine.status()
        assert (right.ready, right.reason) == (True, None)
        assert "golden.npz" in wrong.reason
        images = models.tiles(9)
        answer = await engine.infer("right", {"image": images})
        assert answer["embedding"].shape == (9, models.WIDTH)


async def test_a_request_that_fails_says_why_and_spoils_no_other(client: Client, folder: Path) -> None:
    free = to_ir(models.write_encoder(folder, "free"))
    config = free / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [ 64, 64, 3 ]", "dims: [ -1, -1, 3 ]"))
    await client.load("free", LOAD_S)
    good, bad = models.tiles(3), models.tiles(3)[:, :32]
    answer, failure = await asyncio.gather(
        embeddings(client, "free", good), embeddings(client, "free", bad), return_exceptions=True
    )
    assert np.array_equal(answer, await embeddings(client, "ir", good))
    assert isinstance(failure, CallFailed)
    assert failure.text.startswith("openvino: Can't set the input tensor")


async def test_what_cannot_be_served_is_refused_with_a_sentence_and_the_others_serve(
    client: Client, folder: Path
) -> None:
    # The gateway's digests find a damaged file before Triton sees it; these are files that were exported so.
    for name, file in (("short_xml", "model.xml"), ("short_bin", "model.bin")):
        path = to_ir(models.write_encoder(folder, name)) / "1" / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (to_ir(models.write_encoder(folder, "no_bin")) / "1" / "model.bin").unlink()
    path = served_by_openvino(models.write_encoder(folder, "short_onnx")) / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:100])
    (served_by_openvino(models.write_encoder(folder, "absent")) / "1" / "model.onnx").unlink()
    for name, old, new in (
        ("narrow", "dims: [ 8 ]", "dims: [ 9 ]"),
        ("flat", "dims: [ 64, 64, 3 ]", "dims: [ 12288 ]"),
        ("typed", "TYPE_UINT8", "TYPE_FP32"),
        ("renamed", '"embedding"', '"features"'),
        ("asked", '"image"', '"picture"'),
    ):
        config = served_by_openvino(models.write_encoder(folder, name)) / "config.pbtxt"
        config.write_text(config.read_text().replace(old, new))
    served_by_openvino(models.write_encoder(folder, "vague"), INFERENCE_PRECISION_HINT="fast")
    one = served_by_openvino(models.write_encoder(folder, "one")) / "1" / "model.onnx"
    graph = onnx.load(one)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, one)

    reasons = {}
    for name, words in {
        "short_xml": "openvino cannot open model.xml: Error parsing",
        "short_bin": "openvino cannot open model.xml: Incorrect weights in bin file",
        "no_bin": "openvino cannot open model.xml: Empty weights data in bin file or bin file cannot be found",
        "short_onnx": "openvino cannot open model.onnx: ",
        "absent": "model.onnx is not in the version's folder",
        "narrow": "output 'embedding' has the dims [9] in config.pbtxt and [8] in the model",
        "flat": "input 'image' has the dims [12288] in config.pbtxt and [64, 64, 3] in the model",
        "typed": "input 'image' is TYPE_FP32 in config.pbtxt and u8 in the model",
        "renamed": "outputs ['features'], which the model does not have",
        "asked": "config.pbtxt names the inputs ['picture'], the model has ['image']",
        "vague": "INFERENCE_PRECISION_HINT is 'fast' in config.pbtxt; it can be f32, bf16",
        "one": "input 'image' has no free batch axis in the model",
    }.items():
        with pytest.raises(CallFailed) as failure:
            await client.load(name, LOAD_S)
        assert words in failure.value.text
        reasons[name] = failure.value.text
    assert not [reason for reason in reasons.values() if "Exception from" in reason or str(folder) in reason]
    images = models.tiles(5)
    assert np.array_equal(await embeddings(client, "small", images), models.direct(folder / "small", images))
    assert (await embeddings(client, "ir", images)).shape == (5, models.WIDTH)


async def test_a_cancelled_request_holds_nobody_up(client: Client) -> None:
    with pytest.raises(CallFailed) as failure:
        await client.infer("by_openvino", [plain_input("image", "UINT8", pictures(64, 0))], ["embedding"], 0.01)
    assert failure.value.trouble is Trouble.DEADLINE
    assert np.isfinite(await embeddings(client, "by_openvino", pictures(2, 3))).all()


@pytest.mark.parametrize(
    ("precision", "flags"), [("bf16", {"avx512_bf16", "amx_bf16"}), ("f16", {"avx512_fp16", "amx_fp16"})]
)
async def test_a_precision_is_computed_in_or_refused(
    client: Client, folder: Path, precision: str, flags: set[str]
) -> None:
    served_by_openvino(released_encoder(folder, precision), INFERENCE_PRECISION_HINT=precision)
    if not flags & set(Path("/proc/cpuinfo").read_text().split()):
        # OpenVINO would take the next best and say nothing.
        with pytest.raises(CallFailed, match=f"is '{precision}' in config.pbtxt, and this CPU does not compute in it"):
            await client.load(precision, LOAD_S)
        return
    await client.load(precision, LOAD_S)
    images = pictures(8, seed=4)
    lower = await embeddings(client, precision, images)
    assert np.abs(lower - await embeddings(client, "by_openvino", images)).max() > 1e-3
    assert np.array_equal(await embeddings(client, precision, images[[5]]), lower[[5]])


@pytest.fixture(scope="module")
def partial(openvino: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with everything that stands beside the embedded Triton but openvino."""
    complete = find_installation(Settings().triton_venv)
    environment = tmp_path_factory.mktemp("partial")
    subprocess.run([complete.venv / "bin" / "python", "-m", "venv", "--without-pip", environment], check=True)
    site = environment / complete.site.relative_to(complete.venv)
    for entry in complete.site.iterdir():
        if "openvino" not in entry.name:
            (site / entry.name).symlink_to(entry)
    return environment


async def test_without_openvino_its_models_say_so_and_onnx_is_served(
    folder: Path, partial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the models' packages: the stubs get them by PATH.
    without = dataclasses.replace(find_installation(Settings().triton_venv), venv=partial)
    monkeypatch.setattr(embedded, "find_installation", lambda venv: without)
    async with empty_triton(Settings(state=tmp_path / "state", model_repository=folder)) as connected:
        with pytest.raises(CallFailed, match=r"openvino is not installed beside the embedded Triton.*make setup"):
            await connected.load("ir", LOAD_S)
        await connected.load("small", LOAD_S)
        images = models.tiles(4)
        assert np.array_equal(await embeddings(connected, "small", images), models.direct(folder / "small", images))


async def test_numpy_2_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The gateway's own environment has numpy 2: the stub finds it where PATH says so.
    complete = find_installation(Settings().triton_venv)
    monkeypatch.setattr(
        embedded, "find_installation", lambda venv: dataclasses.replace(complete, venv=Path(sys.prefix))
    )
    async with empty_triton(Settings(state=tmp_path / "state", model_repository=folder)) as connected:
        with pytest.raises(CallFailed, match="needs numpy 1 beside Triton's stub, found numpy 2"):
            await connected.load("ir", LOAD_S)


async def test_the_preflight_asks_for_openvino_only_where_a_model_needs_it(
    folder: Path, partial: Path, tmp_path: Path
) -> None:
    models.write_encoder(tmp_path, "small")
    for repository, status, out, complaint in (
        (folder, 1, "", "openvino is missing"),
        (tmp_path, 0, "embedded Triton: ready", ""),
    ):
        environment = {"PATHSERVE_TRITON_VENV": str(partial), "PATHSERVE_MODEL_REPOSITORY": str(repository)}
        result = subprocess.run(
            [sys.executable, "-m", "gateway.inference.preflight"],
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
        assert (result.returncode, result.stdout[:22]) == (status, out)
        assert complaint in result.stderr
        assert "small" not in result.stderr
    assert models_of_openvino(tmp_path) == []
    assert "by_openvino" in models_of_openvino(folder)
