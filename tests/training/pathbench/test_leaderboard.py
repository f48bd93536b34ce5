"""What may stand on which board, and what the boards say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.pathbench.boards import record, records
from training.pathbench.leaderboard import BoardRefused, leaderboard
from training.pathbench.records import Record

pytestmark = pytest.mark.training


def board(cells: list[Record], name: str = "main") -> dict[str, Any]:
    return leaderboard(cells)["boards"][name]


def test_boards_are_plain_json_with_ranks_and_intervals() -> None:
    found = board(records())
    json.dumps(found, allow_nan=False)
    assert list(found["ranking"]["mean_rank"]) == ["strong", "middle", "weak"]
    assert found["ranking"]["mean_rank"] == {"strong": 1, "middle": 2, "weak": 3}
    assert found["ranking"]["mean_rank_95"]["strong"] == [1, 1]
    assert set(found["ranking"]["by_organ"]) == {"breast", "colon"}
    assert set(found["ranking"]["by_type"]) == {"tile", "slide"}
    assert found["ranking"]["by_organ"]["breast"]["mean_rank"] == {"strong": 1, "middle": 2, "weak": 3}
    assert found["seed_spread"]["macro_auroc"] == pytest.approx(np.std([0.01, -0.01]))
    assert found["nemenyi_q"]["3"] == pytest.approx(2.343, abs=1e-3)
    assert found["not_ranked"] == {}
    assert found["common"] is None


def test_probes_of_a_task_are_its_metrics() -> None:
    cells = [
        record("A", "t", value, probe=probe) for probe, value in (("linear", 0.9), ("knn", 0.8), ("retrieval", 0.7))
    ]
    cells += [
        record("B", "t", value, probe=probe) for probe, value in (("linear", 0.8), ("knn", 0.9), ("retrieval", 0.9))
    ]
    found = board(cells)
    assert found["ranking"]["tasks"] == 1
    assert found["ranking"]["mean_rank"] == {"B": 1, "A": 2}
    assert len(found["rows"]) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"leakage": "overlap"}, "'overlap'"),
        ({"leakage": "unknown"}, "'unknown'"),
        ({"grouping": "patient-unknown"}, "patients"),
        ({"low": float("nan")}, "without its interval"),
        ({"values": ()}, "no figure"),
        ({"low": 0.9, "high": 0.1}, "ends before"),
        ({"key": {"split": "other"}}, "different splits"),
    ],
)
def test_the_main_board_refuses(change: dict[str, Any], reason: str) -> None:
    first, *others = records()
    with pytest.raises(BoardRefused, match=reason):
        leaderboard([replace(first, **change), *others])


def test_two_results_of_one_cell_are_refused() -> None:
    first, *others = records()
    with pytest.raises(BoardRefused, match="two results"):
        leaderboard([first, replace(first, value=0.99), *others])


def test_leaky_cells_stand_on_the_flagged_board_beside_the_clean_ones() -> None:
    flagged = record(
        "leaky",
        "polyps",
        0.99,
        organ="colon",
        board="flagged",
        leakage="overlap",
        reasons=("group 7 is in both",),
    )
    cells = [*records(), flagged]
    assert "leaky" not in board(cells)["models"]
    found = board(cells, "flagged")
    assert found["models"] == ["leaky", "middle", "strong", "weak"]
    assert [row["task"] for row in found["rows"]] == ["polyps"]
    assert {cell["model"]: cell["leakage"] for cell in found["cells"]} == {
        "leaky": "overlap",
        "strong": "clean",
        "middle": "clean",
        "weak": "clean",
    }
    assert next(cell for cell in found["cells"] if cell["model"] == "leaky")["reasons"] == ["group 7 is in both"]


def test_a_model_with_gaps_is_not_ranked_with_the_others_and_is_on_the_common_rows() -> None:
    cells = [cell for cell in records() if not (cell.model == "strong" and cell.task == "polyps")]
    found = board(cells)
    assert list(found["ranking"]["mean_rank"]) == ["middle", "weak"]
    assert found["not_ranked"] == {"strong": 1}
    assert list(found["common"]["mean_rank"]) == ["strong", "middle", "weak"]
    assert found["common"]["tasks"] == found["ranking"]["tasks"] - 1


def test_optimistic_results_are_shown_and_never_ranked() -> None:
    cells = [
        record("nested", "s", 0.6, board="survival"),
        record("best epoch", "s", 0.7, board="survival", optimistic=True),
    ]
    found = board(cells, "survival")
    assert list(found["ranking"]["mean_rank"]) == ["nested"]
    assert {cell["model"]: cell["optimistic"] for cell in found["cells"]} == {"nested": False, "best epoch": True}


def test_empty_and_single_model_boards() -> None:
    assert board([])["ranking"] is None
    json.dumps(leaderboard([]), allow_nan=False)
    alone = board([record("A", "t", 0.7)])["ranking"]
    assert (alone["mean_rank"], alone["mean_rank_95"], alone["nemenyi_cd_0_05"]) == ({"A": 1}, None, None)


@pytest.fixture
def predicted(tmp_path: Path) -> tuple[list[Record], Path]:
    """Two models on one task of 80 patients; one sees the label, the other hardly."""
    rng = np.random.default_rng(0)
    labels, cells = np.arange(80) % 2, []
    for name, shift in (("seeing", 2.0), ("blind", 0.1)):
        positive = 1 / (1 + np.exp(-(rng.normal(size=(2, 80)) + shift * (labels - 0.5))))
        probabilities = np.stack([1 - positive, positive], 2).astype(np.float32)
        groups = np.array([f"patient {k}" for k in range(80)])
        np.savez(tmp_path / f"{name}.npz", probabilities_RNC=probabilities, labels_N=labels, groups_N=groups)
        cells.append(record(name, "t", 0.9 if name == "seeing" else 0.5, predictions=f"{name}.npz"))
    return cells, tmp_path


def test_pairs_are_compared_on_the_same_patients(predicted: tuple[list[Record], Path]) -> None:
    cells, folder = predicted
    (pair,) = leaderboard(cells, folder)["boards"]["main"]["pairs"]
    assert (pair["first"], pair["second"], pair["row"]) == ("seeing", "blind", 0)
    assert 0 < pair["low"] < pair["difference"] < pair["high"]
    assert pair["holm"] == pair["p"] < 0.05
    assert pair["delong_p"] < 0.05
    assert board(cells)["pairs"] == []


def test_pairs_of_different_items_are_refused(predicted: tuple[list[Record], Path]) -> None:
    cells, folder = predicted
    with np.load(folder / "blind.npz") as file:
        arrays = dict(file)
    np.savez(folder / "blind.npz", **{**arrays, "groups_N": arrays["groups_N"][::-1]})
    with pytest.raises(BoardRefused, match="different items"):
        leaderboard(cells, folder)
