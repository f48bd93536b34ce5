"""kill -9 at any moment: every accepted order still ends exactly once, and what was done is not done again."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gateway.analyses.batches import IN_FLIGHT, REQUEST_TILES
from gateway.domain.uids import derive_uid
from gateway.inference.embedded import read_record
from gateway.operations.settings import Settings
from tests.support.gateway import Case, Gateway, eventually, running_gateway, study_in
from tests.support.models import without_slide_heads
from tests.support.orthanc import Orthanc
from tests.support.triton import rows_computed

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

STEPS = ("fetch", "infer", "report", "deliver")
DURABLE_BATCH = IN_FLIGHT * REQUEST_TILES
"""The most tiles that a kill may cost."""


def assert_ended_once(gateway: Gateway, pacs: Orthanc, analysis: str, case: Case) -> Counter[tuple[str, str]]:
    """Completed, each step finished once, each object in the PACS once; the step events, counted."""
    shown = gateway.finish(analysis)
    assert shown["state"] == "completed", shown
    steps = Counter(gateway.steps(analysis))
    assert {step: steps[step, "finished"] for step in STEPS} == dict.fromkeys(STEPS, 1)
    stored = Counter(pacs.instances())
    roles = of_study(study_in(case))
    assert {role: stored[derive_uid(analysis, role)] for role in roles} == dict.fromkeys(roles, 1)
    return steps


def of_study(study: str) -> list[str]:
    """The roles of the objects that an analysis writes once a study, in the order in which they are delivered."""
    return [f"{kind}/{study}" for kind in ("sr", "pdf", "ko")]


def in_the_middle_of_the_tiles(gateway: Gateway, analysis: str) -> int:
    """Wait until some tiles are done and some are not; how many there are in all."""

    def look() -> int:
        progress = gateway.show(analysis)["progress"]
        if progress is None or progress["step"] != "infer" or not progress["total"]:
            return 0
        assert progress["done"] < progress["total"], "the slide is too small for this test"
        return int(progress["total"]) if progress["done"] >= REQUEST_TILES else 0

    return eventually(look, "the tiles are being computed", 60, every_s=0.02)


@pytest.fixture(scope="module")
def gateway(pacs: Orthanc, models: Path, state: Path) -> Iterator[Gateway]:
    """A gateway that waits long for its PACS. Tests that kill it start it again."""
    settings = {
        "PATHSERVE_MODEL_REPOSITORY": str(models),
        "PATHSERVE_RETRY_ATTEMPTS": "100",
        "PATHSERVE_RETRY_DELAY_S": "0.3",
    }
    with running_gateway(state, pacs.address, **settings) as gateway:
        yield gateway


def test_tiles_are_computed_once(gateway: Gateway, pacs: Orthanc, case: Case, state: Path) -> None:
    before = rows_computed(state, "tile_encoder")
    analysis = gateway.order(case)
    tiles = in_the_middle_of_the_tiles(gateway, analysis)
    gateway.kill()
    gateway.start()
    steps = assert_ended_once(gateway, pacs, analysis, case)
    computed = rows_computed(state, "tile_encoder") - before
    assert steps["fetch", "started"] == 1
    assert steps["infer", "started"] == 2
    assert steps["report", "started"] == steps["deliver", "started"] == 1
    assert tiles <= computed <= tiles + DURABLE_BATCH


def test_killed_at_the_beginning_of_every_step(gateway: Gateway, pacs: Orthanc, small_case: Case) -> None:
    analysis = gateway.order(small_case)
    for step in STEPS:
        gateway.wait_for_step(analysis, step, "started")
        gateway.kill()
        gateway.start(ready=False)
    steps = assert_ended_once(gateway, pacs, analysis, small_case)
    # Killed once each, as its beginning was seen; a step that was over by then is not begun again.
    assert all(1 <= steps[step, "started"] <= 2 for step in STEPS)


def test_killed_in_the_middle_of_the_delivery(gateway: Gateway, pacs: Orthanc, small_case: Case) -> None:
    analysis = gateway.order(small_case)
    first, *_, last = (derive_uid(analysis, role) for role in of_study(study_in(small_case)))
    gateway.wait_for_step(analysis, "report", "started")
    eventually(lambda: first in pacs.instances("SR"), "the first document is delivered", every_s=0.01)
    gateway.kill()
    stored = pacs.instances()
    gateway.start(ready=False)
    steps = assert_ended_once(gateway, pacs, analysis, small_case)
    assert steps["deliver", "started"] == 2
    assert last not in stored, "the delivery was over before the kill: nothing was tested"


def test_killed_and_the_frame_cache_is_emptied(gateway: Gateway, pacs: Orthanc, small_case: Case) -> None:
    """What was fetched may be taken away at any moment: it is fetched again."""
    analysis = gateway.order(small_case)
    gateway.wait_for_step(analysis, "infer", "started")
    gateway.kill()
    shutil.rmtree(gateway.state / "cache")
    gateway.start(ready=False)
    steps = assert_ended_once(gateway, pacs, analysis, small_case)
    assert steps["fetch", "started"] == 1
    assert list((gateway.state / "cache").glob("*/*/*/*.*")) != []


def test_the_pacs_is_down_at_delivery(gateway: Gateway, pacs: Orthanc, small_case: Case) -> None:
    analysis = gateway.order(small_case)
    gateway.wait_for_step(analysis, "fetch", "finished")
    pacs.stop()
    try:
        gateway.wait_for_step(analysis, "deliver", "retry")
        gateway.kill()
        gateway.start(ready=False)
        # What the kill cut short begins again, and goes on waiting.
        eventually(lambda: gateway.show(analysis)["updated"], "the gateway answers")
        assert gateway.show(analysis)["state"] == "running"
    finally:
        pacs.start()
    steps = assert_ended_once(gateway, pacs, analysis, small_case)
    assert {step: steps[step, "started"] for step in STEPS[:3]} == dict.fromkeys(STEPS[:3], 1)
    assert steps["deliver", "retry"] >= 1


@pytest.fixture(scope="module")
def owner(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway on a state folder of its own, whose worker owns the Triton and loads the tissue models into it."""
    folder = tmp_path_factory.mktemp("owner")
    models = without_slide_heads(Settings().model_repository, folder / "repository")
    with running_gateway(folder / "state", pacs.address, PATHSERVE_MODEL_REPOSITORY=str(models)) as gateway:
        yield gateway


def test_the_worker_that_owns_triton_is_killed(owner: Gateway, pacs: Orthanc, case: Case) -> None:
    """The gateway brings another worker, which ends the Triton that is left and starts its own."""
    before = triton_of(owner)
    analysis = owner.order(case)
    in_the_middle_of_the_tiles(owner, analysis)
    [worker] = owner.workers()
    worker.kill()
    assert owner.show(analysis)["state"] == "running"
    steps = assert_ended_once(owner, pacs, analysis, case)
    assert steps["fetch", "started"] == 1
    assert [other.pid for other in owner.workers()] != [worker.pid]
    assert triton_of(owner) != before
    assert not before.is_running()


def test_triton_is_killed(owner: Gateway, pacs: Orthanc, case: Case) -> None:
    analysis = owner.order(case)
    in_the_middle_of_the_tiles(owner, analysis)
    before = triton_of(owner)
    before.kill()
    steps = assert_ended_once(owner, pacs, analysis, case)
    assert [steps[step, "started"] for step in ("fetch", "report", "deliver")] == [1, 1, 1]
    assert triton_of(owner) != before


def triton_of(gateway: Gateway) -> psutil.Process:
    """The embedded Triton that runs for a gateway's state folder."""
    record = read_record(gateway.state)
    assert record is not None
    return psutil.Process(record.pid)
