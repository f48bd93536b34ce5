"""`serve`: a server is brought to exactly the versions that are wanted, while those that stay answer."""

import asyncio
import math
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from gateway.inference import TritonEngine
from gateway.inference.client import Client
from gateway.inference.embedded import read_record
from gateway.operations.errors import ModelChanged, ModelNotLoaded, ModelRefused
from gateway.operations.settings import Settings
from tests.support.models import add_version, answer_golden, change_engine, seal, shifted

from . import models

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder and the ensemble `both` in two versions that share the head; `twin`; `fickle`; a third that lies."""
    folder = tmp_path_factory.mktemp("versions")
    for name, count in (("encoder", 1), ("twin", 2), ("fickle", 1)):
        models.write_encoder(folder, name, count=count, golden=True)
    models.write_head(folder, "head")
    models.write_ensemble(folder, "both", "encoder", "head")
    add_version(folder, "encoder")
    add_version(folder, "both", steps={"encoder": "encoder-v2"})
    liar = add_version(folder, "encoder", "3", change=lambda model: None)
    change_engine(liar, shifted)
    seal(liar)  # all digests agree: only the replay of its golden answers can tell
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keeper(
    installed: None, versions: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TritonEngine]:
    settings = Settings(state=tmp_path_factory.mktemp("state"), model_repository=versions)
    async with TritonEngine.open(settings, []) as opened:
        yield opened


async def test_versions_are_exchanged_while_what_stays_answers(keeper: TritonEngine, versions: Path) -> None:
    await keeper.serve(["twin", "both"])
    assert await _loaded(keeper) == {"twin", "both", "encoder", "head"}
    assert [(s.folder, s.model, s.version, s.ready, s.reason, s.target, s.precision) for s in keeper.status()] == [
        ("twin", "twin", "1", True, None, "onnx", "fp32"),
        ("both", "both", "1", True, None, "onnx", "fp32"),
    ]
    images = models.tiles(4)
    due = models.direct(versions / "twin", images)
    over = asyncio.Event()
    waits: list[float] = []

    async def keep_asking() -> None:
        while not over.is_set():
            start = time.monotonic()
            assert np.array_equal((await keeper.infer("twin", {"image": images}))["embedding"], due)
            waits.append(time.monotonic() - start)

    asking = [asyncio.create_task(keep_asking()) for _ in range(2)]
    loads = _metric("pathserve_model_loads_total", model="head", version="1", outcome="loaded")
    first = (await keeper.infer("both", {"image": images}))["logits"]
    await keeper.serve(["twin", "both-v2"])
    assert await _loaded(keeper) == {"twin", "both-v2", "encoder-v2", "head"}
    second = (await keeper.infer("both-v2", {"image": images}))["logits"]
    await keeper.serve(["both", "twin", "both-v2"])
    assert await _loaded(keeper) == {"twin", "both", "both-v2", "encoder", "encoder-v2", "head"}
    assert np.array_equal((await keeper.infer("both", {"image": images}))["logits"], first)
    await keeper.serve(["both", "twin"])
    over.set()
    await asyncio.gather(*asking)
    assert await _loaded(keeper) == {"twin", "both", "encoder", "head"}
    assert np.abs(second - first).min() > 0, "the second version should answer otherwise"
    # A load takes half a second and more; none of the others' requests waited for one.
    assert len(waits) > 20
    assert sorted(waits)[len(waits) * 9 // 10] < 0.5
    assert _metric("pathserve_model_loads_total", model="head", version="1", outcome="loaded") == loads
    assert _metric("pathserve_model_unloads_total", model="both", version="2") == 1
    with pytest.raises(ModelNotLoaded, match="both-v2"):
        await keeper.infer("both-v2", {"image": images})


async def test_serving_the_same_again_changes_nothing(keeper: TritonEngine) -> None:
    await keeper.serve(["both"])
    async with _client(keeper) as client:
        before = await client.answered()
        await keeper.serve(["both"])
        assert await client.answered() == before
    assert await _loaded(keeper) == {"both", "encoder", "head"}


async def test_a_refused_version_has_its_reason_and_the_others_serve(keeper: TritonEngine) -> None:
    await keeper.serve(["encoder", "encoder-v3", "absent"])
    assert [status.ready for status in keeper.status()] == [True, False, False]
    reasons = [status.reason or "" for status in keeper.status()]
    assert "golden.npz" in reasons[1]
    assert "no model absent" in reasons[2]
    assert await _loaded(keeper) == {"encoder"}
    with pytest.raises(ModelRefused, match="encoder-v3"):
        await keeper.infer("encoder-v3", {"image": models.tiles(1)})
    assert (await keeper.infer("encoder", {"image": models.tiles(1)}))["embedding"].shape == (1, models.WIDTH)
    ready = {version: _metric("pathserve_model_ready", model="encoder", version=version) for version in ("1", "2", "3")}
    assert (ready["1"], ready["3"]) == (1, 0)
    dropped = _metric("pathserve_model_ready", model="both", version="1")
    assert dropped is not None
    assert math.isnan(dropped)


async def test_a_case_goes_on_with_a_version_that_nothing_else_wants(keeper: TritonEngine, versions: Path) -> None:
    images = models.tiles(40)
    await keeper.serve(["encoder"])
    async with TritonEngine.open(keeper.settings, ["encoder"]) as case:
        await keeper.serve(["encoder-v2"])
        assert await _loaded(keeper) == {"encoder-v2"}
        answer = await case.infer("encoder", {"image": images})
        assert np.array_equal(answer["embedding"], models.direct(versions / "encoder", images))
    assert await _loaded(keeper) == {"encoder", "encoder-v2"}, "a case never unloads"
    await keeper.serve(["encoder-v2"])
    assert await _loaded(keeper) == {"encoder-v2"}


async def test_a_case_trusts_what_its_process_has_proven_on_this_server(keeper: TritonEngine, versions: Path) -> None:
    folder = versions / "encoder"
    await keeper.serve(["encoder"])
    images = models.tiles(1)
    due = (await keeper.infer("encoder", {"image": images}))["embedding"]
    before = await _answered(keeper, "encoder")
    async with TritonEngine.open(keeper.settings, ["encoder"]) as case:
        assert np.array_equal((await case.infer("encoder", {"image": images}))["embedding"], due)
        assert await _answered(keeper, "encoder") == before + 1, "its golden inputs were replayed again"
    # The same engine with other golden answers was never proven.
    golden = (folder / "golden.npz").read_bytes()
    try:
        models.write_golden(folder, error=1.0)
        async with TritonEngine.open(keeper.settings, ["encoder"]) as case:
            assert "golden.npz" in (case.status()[0].reason or "")
    finally:
        (folder / "golden.npz").write_bytes(golden)
        seal(folder)
    # What was refused is not taken for proven, whatever was before; Triton counts from its new load.
    async with TritonEngine.open(keeper.settings, ["encoder"]) as case:
        assert case.status()[0].ready
        assert await _answered(keeper, "encoder") == 1


async def test_a_folder_that_is_replaced_is_never_mixed_in(keeper: TritonEngine, versions: Path) -> None:
    images = models.tiles(4)
    folder = versions / "fickle"
    await keeper.serve(["fickle"])
    async with TritonEngine.open(keeper.settings, ["fickle"]) as case:
        before = (await case.infer("fickle", {"image": images}))["embedding"]
        _replace(folder)
        with pytest.raises(ModelChanged, match="fickle") as caught:
            await case.infer("fickle", {"image": images})
        assert caught.value.retryable
        await keeper.serve(["fickle"])
        assert keeper.status()[0].ready
        after = (await keeper.infer("fickle", {"image": images}))["embedding"]
        assert np.allclose(after - before, [0.25] + [0] * (models.WIDTH - 1), atol=1e-4)
        with pytest.raises(ModelChanged):
            await case.infer("fickle", {"image": images})
    async with TritonEngine.open(keeper.settings, ["fickle"]) as anew:
        assert np.array_equal((await anew.infer("fickle", {"image": images}))["embedding"], after)
        # Gone is as bad as replaced.
        shutil.move(folder, folder.with_name("gone"))
        with pytest.raises(ModelChanged):
            await anew.infer("fickle", {"image": images})
        shutil.move(folder.with_name("gone"), folder)


def _replace(folder: Path) -> None:
    change_engine(folder, shifted)
    answer_golden(folder)
    seal(folder)


def _metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def _loaded(engine: TritonEngine) -> set[str]:
    async with _client(engine) as client:
        return set(await client.ready_models())


async def _answered(engine: TritonEngine, model: str) -> int:
    await asyncio.sleep(0.3)  # Triton counts a request a moment after its answer
    async with _client(engine) as client:
        return (await client.answered())[model]


def _client(engine: TritonEngine) -> Client:
    record = read_record(engine.settings.state)
    assert record is not None
    return Client(record.endpoint)
