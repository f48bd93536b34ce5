"""What the pages point at is there."""

import re
from pathlib import Path

import pytest

from tests.test_repository import ROOT, tracked

LINK = re.compile(r"\]\(([^)#\s]+)")
PAGES = [path for path in tracked() if path.suffix == ".md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    targets = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in targets if not (path.parent / link).exists()]


def test_makefile_targets_and_recipes_of_the_readme_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"\bmake ([a-z-]+)", readme)) <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert all((ROOT / recipe).is_file() for recipe in re.findall(r"training/recipes/[\w.-]+", readme))
