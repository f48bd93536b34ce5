"""Whoever runs the gateway finds every figure of the archive and of the slides explained."""

from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import Counter, Gauge, Histogram

from gateway.archive import metrics as of_the_archive
from gateway.slides import metrics as of_slides

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


@pytest.mark.parametrize("module", [of_the_archive, of_slides], ids=lambda module: module.__name__)
def test_every_metric_is_on_the_page(module: ModuleType) -> None:
    page = OPERATIONS.read_text(encoding="utf-8")
    collectors = [value for value in vars(module).values() if isinstance(value, (Counter, Gauge, Histogram))]
    names = {family.name + "_total" * (family.type == "counter") for one in collectors for family in one.describe()}
    assert names
    assert not [name for name in sorted(names) if f"`{name}`" not in page]
