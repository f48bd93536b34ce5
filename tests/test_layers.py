"""Who may call whom (DESIGN.md), held by reading the imports of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERYWHERE = {"domain", "operations"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__.py": set(),
    "command_line.py": EVERYWHERE,
    "domain": set(),
    "operations": {"domain"},
    "archive": EVERYWHERE,
    "slides": EVERYWHERE | {"archive"},  # it reads what an archive has fetched
    "inference": EVERYWHERE,
    "reports": EVERYWHERE,
    "delivery": EVERYWHERE,
    "analyses": EVERYWHERE | {"archive", "slides", "inference", "reports", "delivery"},
    "http": EVERYWHERE | {"analyses"},
    "grpc": EVERYWHERE | {"analyses"},
    "orders": EVERYWHERE | {"analyses"},
}
TRAINING = {"domain", "operations", "archive", "slides"}
TRAINING_MAY_IMPORT: dict[str, set[str]] = {
    "data": set(),
    "nn": set(),
    "ssl": {"data", "nn"},
    # The systems know what they share, never one another. Their experts come from the bench's encoders, and what an
    # encoder has seen is judged by the bench's rules.
    "gpfm": {"data", "nn", "ssl", "pathbench"},
    "mil": {"data", "nn", "pathbench"},
    "tissue": {"data", "nn", "pathbench"},
    "pathsegmentor": {"data", "nn", "ssl", "pathbench"},
    "smartccs": {"data", "nn", "ssl", "pathbench"},
    "pathbench": {"data", "nn"},
    "features": {"data", "nn", "pathbench"},
}
HEAVY = ("torch", "training", "exporters")


def imports_of(path: Path) -> set[str]:
    """Dotted names of all absolute imports of a module, wherever in it they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def rooms_of(names: set[str]) -> set[str]:
    """The rooms, and the modules that stand beside them (`cli`), among some dotted names."""
    rooms = {name.split(".")[1] for name in names if name.startswith("gateway.")}
    gateway = ROOT / "gateway"
    return {room for room in rooms if (gateway / room).is_dir() or (gateway / f"{room}.py").is_file()}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("gateway"), ids=lambda path: str(path.relative_to(ROOT)))
def test_gateway_room(path: Path) -> None:
    names = imports_of(path)
    assert not [name for name in names if name.split(".")[0] in HEAVY]
    room = path.relative_to(ROOT / "gateway").parts[0]
    if room in ("cli.py", "conformance.py"):
        return  # cli composes the rooms, conformance describes them: these two may import every one
    assert rooms_of(names) - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", modules("training"), ids=lambda path: str(path.relative_to(ROOT)))
def test_training_room(path: Path) -> None:
    names = imports_of(path)
    assert not [name for name in names if name.split(".")[0] == "exporters"]
    room = path.relative_to(ROOT / "training").parts[0]
    assert rooms_of(names) <= TRAINING | ({"inference"} if room == "features" else set())
    if not (ROOT / "training" / room).is_dir():
        return  # the modules beside the rooms are for all of them
    own = {name.split(".")[1] for name in names if name.startswith("training.")}
    assert {other for other in own if (ROOT / "training" / other).is_dir()} - {room} <= TRAINING_MAY_IMPORT[room]


@pytest.mark.parametrize("path", modules("exporters"), ids=lambda path: str(path.relative_to(ROOT)))
def test_exporters_room(path: Path) -> None:
    assert rooms_of(imports_of(path)) <= TRAINING | {"inference"}


def test_every_room_has_a_rule() -> None:
    rooms = {path.name for path in (ROOT / "gateway").iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(MAY_IMPORT)


def test_rule_catches_a_wrong_import(tmp_path: Path) -> None:
    module = tmp_path / "wrong.py"
    module.write_text("from gateway.http.app import app\nfrom gateway import cli\nimport torch\n")
    assert rooms_of(imports_of(module)) == {"http", "cli"}
    assert "torch" in imports_of(module)


def test_requests_process_stays_light() -> None:
    """The process that answers requests decodes nothing: its rooms import neither slides nor the workflow's engine."""
    for path in modules("gateway/http"):
        assert not {"slides", "inference", "archive", "reports"} & rooms_of(imports_of(path)), path
