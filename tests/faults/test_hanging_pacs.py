"""A PACS that never answers holds up neither a cancellation nor the end of the server."""

import time
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, case_without_slides, eventually, running_gateway
from tests.support.orthanc import free_port
from tests.support.rogue_pacs import Request, RoguePacs, running

pytestmark = pytest.mark.pacs


def hang(request: Request) -> None:
    request.connection.settimeout(60)
    request.connection.recv(1)  # until the client gives up


def asked(gateway: Gateway, pacs: RoguePacs, study: str) -> str:
    """Order, and wait until the PACS has been asked for the study."""
    analysis = gateway.order(case_without_slides(study))
    eventually(lambda: pacs.asked(study), "the PACS is asked")
    return analysis


def test_cancelled_and_stopped_while_the_pacs_hangs(tmp_path: Path) -> None:
    triton = f"127.0.0.1:{free_port()}"  # not needed, so none is started
    with (
        running(RoguePacs(list_series=hang)) as pacs,
        running_gateway(tmp_path / "state", pacs.address, ready=False, PATHSERVE_TRITON_URL=triton) as gateway,
    ):
        cancelled = asked(gateway, pacs, "2.25.1")
        assert gateway.request("DELETE", f"/v1/analyses/{cancelled}").status_code == 202
        assert gateway.finish(cancelled, within_s=45)["state"] == "cancelled"

        interrupted = asked(gateway, pacs, "2.25.2")
        began = time.monotonic()
        gateway.stop()
        assert time.monotonic() - began < 15

        pacs.list_series = lambda request: request.answer(404, "", b"")
        gateway.start(ready=False)
        shown = gateway.finish(interrupted)
        assert (shown["state"], shown["failure"]["reason"]) == ("failed", "slide-not-in-archive")
        assert gateway.show(cancelled)["state"] == "cancelled"
        gateway.kill()  # all was seen; a good end would wait some seconds for the Triton that is not there
