"""The published rule against the published scores, and tables that must not be ranked."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from training.pathbench import __main__ as command
from training.pathbench.rank import figures, read_scores
from training.pathbench.ranking import Row, Scores, ScoresInvalid, cliques, conclusions, rank

pytestmark = pytest.mark.training

GOLDEN = Path(__file__).parents[4] / "shared" / "specs" / "golden" / "pathbench_half.json"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not GOLDEN.is_file():
        pytest.skip("data set not present: the published scores, specs/golden")
    return json.loads(GOLDEN.read_bytes())


def write(path: Path, lines: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


HEADER = ["organ", "task", "cohort", "metric"]


def scores(values: list[list[float]], rows: list[Row] | None = None) -> Scores:
    table = np.array(values, float)
    rows = rows or [Row("breast", f"task {k}", "Internal", "AUC") for k in range(len(table))]
    return Scores(tuple(rows), tuple("ABCDEFG"[: table.shape[1]]), table)


@pytest.fixture(scope="module")
def published(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = [[*task.values(), *means] for task, means in zip(golden["tasks"], golden["means"], strict=True)]
    path = tmp_path_factory.mktemp("published") / "scores.csv"
    return write(path, [[*golden["tasks"][0], *golden["models"]], *table])


@pytest.mark.parametrize("ties", ["average", "released"])
def test_published_scores_give_the_published_ranks(
    golden: dict[str, Any], published: Path, ties: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["rank", str(published), "--json", "--ties", ties]) == 0
    found, expected = json.loads(capsys.readouterr().out), golden["expected"]
    for key in ("mean_rank", "n_first", "mean_rank_auc_only", "mean_rank_c_index_only"):
        assert found[key] == pytest.approx(expected[key], abs=1e-9), key
    assert list(found["mean_rank"]) == list(expected["mean_rank"])
    for key in ("friedman_chi2", "nemenyi_cd_0_05"):
        assert found[key] == pytest.approx(expected[key], abs=1e-6), key
    assert found["friedman_p"] == pytest.approx(expected["friedman_p"])
    assert found["best"] == expected["best"]
    for model, p in expected["wilcoxon_two_sided_best_vs"].items():
        assert found["wilcoxon_two_sided_best_vs"][model] == pytest.approx(p)
    assert {len(ranks) for ranks in found["task_ranks"].values()} == {len(golden["tasks"])}
    for model, ranks in found["task_ranks"].items():
        assert np.mean(ranks) == pytest.approx(found["mean_rank"][model])


def test_published_scores_as_text(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["rank", str(published)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:3] == ["1", "Virchow2", "5.1250"]
    assert "not separable" in out


def test_equal_scores_share_their_places_and_released_ties_do_not() -> None:
    table = scores([[0.9, 0.9, 0.5], [0.7, 0.7, 0.7]])
    assert rank(table).ranks_TM.tolist() == [[1.5, 1.5, 3], [2, 2, 2]]
    assert rank(table).firsts.tolist() == [2, 2, 1]
    assert rank(table, "released").ranks_TM.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert rank(table, "released").firsts.tolist() == [2, 0, 0]


def test_metrics_of_a_task_are_averaged_as_ranks_never_as_scores() -> None:
    rows = [Row("lung", "grade", "H1", metric) for metric in ("AUC", "error in years", "F1")]
    found = rank(scores([[0.9, 0.8, 0.7], [-900, -1, -2], [0.5, 0.7, 0.6]], rows))
    assert found.places == (("lung", "grade", "H1"),)
    assert found.ranks_TM.tolist() == [[2.5, 1, 2.5]]  # the order of 7/3, 4/3, 7/3
    assert figures(scores([[0.9, 0.8], [0.1, 0.2]], rows[:2]))["task_ranks"] == {"A": [1.5, 1.5], "B": [1.5, 1.5]}


def test_metrics_of_a_task_are_no_units_of_the_signed_rank_test() -> None:
    values = np.random.default_rng(3).normal((0.9, 0), 1, (7, 2))
    rows = [Row("lung", f"task {k}", "H1", metric) for k in range(7) for metric in ("AUC", "F1", "kappa")]
    once = conclusions(scores(values.tolist()))["wilcoxon_two_sided_best_vs"]["B"]["p"]
    thrice = conclusions(scores(values.repeat(3, 0).tolist(), rows))["wilcoxon_two_sided_best_vs"]["B"]["p"]
    signs = np.sum(values[:, 0] > values[:, 1])  # ranks of two models are their order alone
    assert thrice == pytest.approx(stats.wilcoxon([1] * signs + [-1] * (7 - signs), method="asymptotic").pvalue)
    assert min(once, thrice) > 1e-2


def test_models_with_gaps_are_not_ranked_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [["b", "t1", "Internal", "AUC", 0.9, 0.8], ["b", "t2", "Internal", "AUC", "NaN", 0.7]]
    path = write(tmp_path / "scores.csv", [[*HEADER, "A", "B"], *lines, ["b", "t3", "H1", "AUC", 0.1, 0.2]])
    assert command.main(["rank", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1 of 2 models lack scores" in captured.err
    assert command.main(["rank", str(path), "--json", "--common"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["task_ranks"] == {"A": [1, None, 2], "B": [2, None, 1]}
    assert (found["rows_left_out"], found["tasks"]) == (1, 2)
    assert "1 rows" in captured.err


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "no column organ"),
        ([["organ", "task", "cohort", "A"]], "no column metric"),
        ([HEADER], "no model"),
        ([[*HEADER, ""]], "without a name"),
        ([[*HEADER, "A", "A"]], "twice"),
        ([[*HEADER, "A"]], "holds no scores"),
        ([[*HEADER, "A"], ["b", "t", "c", "AUC"]], "4 cells"),
        ([[*HEADER, "A"], ["b", "", "c", "AUC", 1]], "names no task"),
        ([[*HEADER, "A"], ["b", "t", "c", "AUC", "high"]], "not a score"),
        ([[*HEADER, "A"], ["b", "t", "c", "AUC", "inf"]], "not a score"),
        ([[*HEADER, "A"], ["b", "t", "c", "AUC", 1], ["b", "t", "c", "AUC", 1]], "Line 3 repeats"),
    ],
)
def test_hostile_tables_are_refused_in_a_sentence(tmp_path: Path, lines: list[list[Any]], reason: str) -> None:
    with pytest.raises(ScoresInvalid, match=reason) as error:
        read_scores(write(tmp_path / "scores.csv", lines))
    assert str(tmp_path) not in error.value.detail


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\x00")
    for name in ("image.csv", "absent.csv", "."):
        with pytest.raises(ScoresInvalid):
            read_scores(tmp_path / name)


def test_byte_order_mark_blank_lines_and_column_order_do_not_matter(tmp_path: Path) -> None:
    text = "\ufeffA,metric,organ,B,task,cohort\r\n\r\n0.1,AUC,b,0.2,t,c\r\n"
    (tmp_path / "scores.csv").write_text(text, encoding="utf-8", newline="")
    found = read_scores(tmp_path / "scores.csv")
    assert (found.models, found.rows) == (("A", "B"), (Row("b", "t", "c", "AUC"),))
    assert found.values_RM.tolist() == [[0.1, 0.2]]


def test_one_model_or_one_task_has_a_rank_and_no_test() -> None:
    for table in ([[0.5], [0.6]], [[0.5, 0.6, 0.4]]):
        found = figures(scores(table))
        assert found["nemenyi_cd_0_05"] is found["friedman_chi2"] is None
        assert found["wilcoxon_two_sided_best_vs"] == {}
        assert "needed" in found["statement"]
        json.dumps(found, allow_nan=False)


def test_cohorts_and_organs_weigh_once_in_the_balanced_ranks() -> None:
    rows = [Row("stomach", "T", cohort, "AUC") for cohort in ("Internal", "H3", "H4")] + [
        Row("brain", "IDH", "Internal", "AUC")
    ]
    found = figures(scores([[3, 1], [3, 1], [2, 1], [1, 5]], rows))
    assert found["mean_rank"] == {"A": 1.25, "B": 1.75}
    assert found["task_balanced"]["mean_rank"] == {"A": 1.5, "B": 1.5}
    assert found["organ_balanced"]["mean_rank"] == {"A": 1.5, "B": 1.5}
    assert found["mean_rank_external_only"] == {"A": 1, "B": 2}


def test_intervals_resample_tasks_with_all_their_cohorts() -> None:
    rows = [Row("stomach", "T", cohort, "AUC") for cohort in "abcdef"] + [Row("brain", "IDH", "a", "AUC")]
    bounds = rank(scores([[3, 1]] * 6 + [[1, 3]], rows)).intervals()
    assert bounds is not None
    assert bounds.tolist() == [[1, 2], [1, 2]]  # two tasks: a quarter of the draws hold one of them only


def test_nothing_is_claimed_of_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(12, 5)).tolist()
    assert "may be chance" in conclusions(scores(noise))["statement"]


def test_cliques_are_the_runs_within_the_critical_difference() -> None:
    mean = {"A": 1.0, "B": 1.5, "C": 2.4, "D": 4.0, "E": 4.2}
    assert list(cliques(mean, 1.0)) == [("A", "B"), ("B", "C"), ("D", "E")]
    assert list(cliques(mean, 0.1)) == []
