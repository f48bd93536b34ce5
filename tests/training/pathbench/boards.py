"""Records of three made models on four rows: strong before middle before weak in each."""

from typing import Any

from training.pathbench.records import Record


def record(model: str, task: str, value: float, **changes: Any) -> Record:
    settings: dict[str, Any] = {
        "organ": "breast",
        "cohort": "held-out",
        "type": "tile",
        "probe": "linear",
        "metric": "macro_auroc",
        "values": (value - 0.01, value + 0.01),
        "low": value - 0.05,
        "high": value + 0.05,
        "groups": 20,
        "items": 200,
        "grouping": "patient",
        "board": "main",
        "leakage": "clean",
        "test_reads": 2,
        "key": {"split": "0" * 64},
    }
    return Record(model=model, task=task, value=value, **{**settings, **changes})


def records() -> list[Record]:
    rows: list[tuple[str, dict[str, Any]]] = [
        ("tumour or not", {}),
        ("grade", {"type": "slide", "probe": "abmil"}),
        ("polyps", {"organ": "colon"}),
        ("tissue", {"organ": "colon", "cohort": "other hospital"}),
    ]
    models = {"strong": 0.9, "middle": 0.8, "weak": 0.7}
    return [record(model, task, value, **row) for task, row in rows for model, value in models.items()]
