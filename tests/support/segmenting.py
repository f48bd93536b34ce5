"""The doors over one service that segments: a slide in a folder, engines whose masks are known, an embedded Triton that
is kept as a worker keeps it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest

from gateway.analyses.keeper import EngineKeeper
from gateway.analyses.ledger import Ledger
from gateway.http.app import create_app
from gateway.http.context import Context
from gateway.http.shell import Shell
from gateway.inference.installation import check
from gateway.operations.auth import ApiKey
from gateway.operations.errors import InferenceUnavailable
from gateway.operations.settings import Settings
from tests.support.pathseg import write_pathseg

KEY = "the-key"


@dataclass(frozen=True)
class SegmentSite:
    """`slide`: folder of the one slide in the archive; `settings` say gRPC at any free port."""

    settings: Settings
    ledger: Ledger
    app: Shell
    context: Context
    slide: Path
    study: str
    series: str

    def ask(self, *prompts: str, box: tuple[float, float, float, float] = (500, 400, 64, 48)) -> dict[str, Any]:
        """A request for a box (x, y, width, height in µm) of the slide."""
        region = dict(zip(("x_um", "y_um", "width_um", "height_um"), box, strict=True))
        return {"study": self.study, "series": self.series, "region": region, "prompts": list(prompts)}


@contextmanager
def segment_site(folder: Path, slide: Path, **more: Any) -> Iterator[SegmentSite]:
    """A site in a new folder; `more`: further settings. Skips the test where Triton is not installed."""
    try:
        check(Settings().triton_venv)
    except InferenceUnavailable as error:
        pytest.skip(f"the embedded Triton is not installed: {error.detail}")
    repository, state = folder / "models", folder / "state"
    for made in (repository, state):
        made.mkdir(parents=True)
    settings = Settings(
        state=state,
        model_repository=write_pathseg(repository),
        archive=f"folder:{slide}",
        rate_limit=100_000,
        login_limit=100_000,
        grpc_port=0,
        **more,
    )
    header = pydicom.dcmread(next(iter(sorted(slide.glob("*.dcm")))), stop_before_pixels=True)
    ledger = Ledger.open(settings.ledger_url, state)
    app, context = create_app(settings, ledger, ApiKey.of(KEY))
    keeper = EngineKeeper(settings, ledger)
    keeper.start()
    try:
        yield SegmentSite(settings, ledger, app, context, slide, header.StudyInstanceUID, header.SeriesInstanceUID)
    finally:
        context.service.close()
        keeper.stop()
        ledger.close()
