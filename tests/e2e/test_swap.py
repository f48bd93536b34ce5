"""Models are swapped under load: no analysis fails, none mixes versions, and what nobody uses is unloaded."""

import json
import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.e2e.conftest import Cli
from tests.support.gateway import Gateway, case_of, eventually, running_gateway
from tests.support.models import add_version, change_engine, seal, shifted, without_slide_heads
from tests.support.triton import loaded

pytestmark = pytest.mark.triton

MODEL = "tissue_classification"
ORDERS = int(os.environ.get("PATHSERVE_TEST_SWAP_ORDERS", "60"))
"""`make campaign` runs 200."""
SLIDE_PX = 300
"""One tile of tissue or two: the test is about many analyses."""


def doubled(model: onnx.ModelProto) -> None:
    """Double the answers of a network."""
    [output] = model.graph.output
    last = next(node for node in model.graph.node if output.name in node.output)
    last.output[0] = "once"
    model.graph.node.append(onnx.helper.make_node("Add", ["once", "once"], [output.name]))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 answers adipose tissue everywhere. Version 3 is sealed well, but its engine does not give the answers
    that its golden.npz knows: only a replay can tell."""
    made = without_slide_heads(Settings().model_repository, tmp_path_factory.mktemp("models") / "repository")
    for version, by in (("2", 30.0), ("3", 60.0)):
        head = add_version(made, "tissue_head", version, change=lambda model, by=by: shifted(model, by))
        ensemble = add_version(made, MODEL, version, steps={"tissue_head": head.name})
    change_engine(head, doubled)
    for folder in (head, ensemble):
        seal(folder)
    return made


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide in a folder archive (the folder above it)."""
    archive = tmp_path_factory.mktemp("archive")
    write_phantom(archive / "slide", kind="he", width_px=SLIDE_PX, height_px=SLIDE_PX, seed=1)
    return archive / "slide"


@pytest.fixture(scope="module")
def gateway(repository: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    state = tmp_path_factory.mktemp("swap") / "state"
    settings = {"PATHSERVE_MODEL_REPOSITORY": str(repository), "PATHSERVE_INFER_LIMIT": "2"}
    with running_gateway(state, f"folder:{slide.parent}", **settings) as gateway:
        yield gateway


def models(gateway: Gateway, *arguments: str) -> tuple[int, str]:
    done = Cli(gateway.state, gateway.settings)("models", *arguments)
    return done.returncode, done.stdout + done.stderr


def listed(gateway: Gateway, query: str = "") -> dict[str, tuple[str, bool]]:
    items = gateway.request("GET", f"/v1/models{query}").json()["items"]
    return {each["folder"]: (each["state"], each["ready"]) for each in items}


def folders(version: str) -> set[str]:
    suffix = "" if version == "1" else f"-v{version}"
    return {"tile_encoder", f"tissue_head{suffix}", f"{MODEL}{suffix}"}


@pytest.mark.timeout(900)
def test_models_are_swapped_under_load(gateway: Gateway, slide: Path) -> None:
    assert listed(gateway) == dict.fromkeys(folders("1"), ("serving", True))
    analyses = [gateway.order(case_of(slide)) for _ in range(ORDERS)]
    expected: dict[int, str] = {}
    since, current = 0, "1"

    def swap(share: float, *arguments: str, serves: str) -> str:
        """A command when so many of the analyses have ended; what it says where it is refused."""
        nonlocal since, current
        ended = int(share * ORDERS)
        gateway.finish(analyses[ended], within_s=240)
        expected.update(dict.fromkeys(range(since, ended + 1), current))
        status, said = models(gateway, *arguments)
        # They are begun in the order of their acceptance.
        since = bisect_left(analyses, True, key=lambda each: gateway.show(each)["state"] == "accepted")
        assert ended < since < ORDERS, "the swap did not come under load"
        current = serves
        return "" if status == 0 else said

    assert swap(0.1, "promote", MODEL, "2", serves="2") == ""
    assert listed(gateway)[f"{MODEL}-v2"] == ("serving", True)
    assert "golden.npz" in swap(0.3, "promote", MODEL, "3", serves="2")
    ready = gateway.request("GET", "/readyz")
    assert (ready.status_code, ready.json()["refused"]) == (200, [f"{MODEL}-v3"])
    assert listed(gateway)[f"{MODEL}-v3"] == ("refused", False)
    assert swap(0.5, "rollback", MODEL, serves="1") == ""
    assert swap(0.65, "promote", MODEL, "2", serves="2") == ""
    expected.update(dict.fromkeys(range(since, ORDERS), current))

    ends = Counter(gateway.finish(each, within_s=240)["state"] for each in analyses)
    assert ends == {"completed": ORDERS}
    versions = []
    answers: dict[str, set[str]] = defaultdict(set)
    for each in analyses:
        report = gateway.report(each)
        used = {model["name"]: model["version"] for model in report["models"]}
        shown = gateway.show(each)["models"]
        assert used == {model["name"]: model["version"] for model in shown}
        assert used == {"tile_encoder": "1", "tissue_head": used[MODEL], MODEL: used[MODEL]}
        versions.append(used[MODEL])
        answers[used[MODEL]].add(json.dumps(report["tissue"]))
    # What had ended before a swap and what began after it; between the two either version is right.
    assert {number: versions[number] for number in expected} == expected
    # One answer a version, and not the same one: the tiles were answered by the version that the report names.
    assert {version: len(different) for version, different in answers.items()} == {"1": 1, "2": 1}
    assert answers["1"] != answers["2"]
    eventually(lambda: loaded(gateway.state) == folders("2"), "what nobody uses is unloaded")
    eventually(lambda: listed(gateway) == dict.fromkeys(folders("2"), ("serving", True)), "and is not listed")
    everything = listed(gateway, "?versions=all")
    assert everything[f"{MODEL}-v3"] == everything[MODEL] == ("standby", False)
