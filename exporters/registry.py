"""The targets by their names. Each is imported when asked for: its runtime need not be installed for the others."""

from importlib import import_module
from pathlib import Path

from exporters.errors import ExportError
from exporters.targets import Engine, Target
from exporters.versions import TARGETS, Version

_MODULES = {"onnx": "exporters.onnx_target", "cpu": "exporters.openvino_target", "tensorrt": "exporters.tensorrt"}
assert tuple(_MODULES) == TARGETS


def target_named(name: str) -> Target:
    """Raises ExportError where there is no such target, or where what it needs is not installed."""
    if name not in _MODULES:
        raise ExportError(f"There is no target {name}; the targets are {', '.join(_MODULES)}.")
    try:
        target: Target = import_module(_MODULES[name]).TARGET
    except ModuleNotFoundError as error:
        raise ExportError(
            f"The target {name} needs {error.name}, which is not installed. Run make setup-training."
        ) from None
    return target


def precision_of(target: Target, asked: str | None) -> str:
    """The precision asked for, or the target's default. Raises ExportError."""
    precision = asked or target.precisions[0]
    if precision not in target.precisions:
        raise ExportError(
            f"The target {target.name} is not built in {precision}; its precisions are {', '.join(target.precisions)}."
        )
    return precision


def open_engine(version: Version, repository: Path) -> Engine | None:
    """The engine of a version's folder; None where it cannot run here."""
    return target_named(version.target).open(repository / version.folder)
