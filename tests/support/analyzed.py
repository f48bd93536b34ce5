"""Reports of analyses without a server, as `pathserve analyze` makes them."""

import json
from pathlib import Path
from typing import Any

from gateway.analyses import local
from gateway.archive import FolderArchive
from gateway.domain.order import Order
from gateway.operations.settings import Settings


def report_in(out: Path) -> dict[str, Any]:
    """The report that lies in a folder."""
    return dict(json.loads((out / "report.json").read_text()))


async def analyzed(
    protocol: str, repository: Path, state: Path, slides: Path, out: Path, **order: Any
) -> dict[str, Any]:
    """The report of an analysis of a folder's slides in this process. `order`: further members of the order."""
    out.mkdir(parents=True, exist_ok=True)
    archive = FolderArchive(slides)
    asked = Order(protocol=protocol, specimens=local.case_of(archive.entries()), **order)
    await local.analyze(asked, archive, out, Settings(state=state, model_repository=repository), lambda progress: None)
    return report_in(out)
