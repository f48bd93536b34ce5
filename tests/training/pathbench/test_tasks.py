"""Tasks as data: every registered card holds, and a wrong one is refused in one sentence."""

from pathlib import Path

import pytest

from training.data.dataset import NAMES
from training.data.tcga import CANCERS
from training.errors import TaskInvalid
from training.pathbench.recipe import BenchRecipe
from training.pathbench.tasks import KINDS, PROBES, read_task, registered
from training.runs import parse_recipe, read_toml

pytestmark = pytest.mark.training
RECIPES = Path(__file__).parents[3] / "training" / "recipes"


@pytest.mark.parametrize("task", registered())
def test_a_registered_card_names_data_that_there_are(task: str) -> None:
    card = read_task(task)
    assert card.kind in KINDS
    assert set(PROBES) == set(KINDS)
    assert card.cancer in CANCERS if card.kind == "survival" else card.dataset in NAMES
    assert set(card.external) <= set(NAMES)


def test_every_kind_of_task_is_registered() -> None:
    assert {read_task(task).kind for task in registered()} == set(KINDS)


def folder(tmp_path: Path, card: str) -> Path:
    (tmp_path / "registry.toml").write_text('it = "it.toml"\n')
    (tmp_path / "it.toml").write_text(f'title = "It"\norgan = "colon"\n{card}')
    return tmp_path


@pytest.mark.parametrize("kind", ["vqa", "report"])
def test_answers_and_reports_are_named_and_not_filled(tmp_path: Path, kind: str) -> None:
    with pytest.raises(TaskInvalid, match=f"of the kind {kind}, which no protocol fills"):
        read_task("it", folder(tmp_path, f'kind = "{kind}"'))


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ('kind = "tile"', "dataset"),
        ('kind = "survival"', "cancer"),
        ('kind = "slide"\ndataset = "oral"', "bags"),
        ('kind = "tile"\ndataset = "oral"\nbag = "group"', "bags"),
        ('kind = "tile"\ndataset = "oral"\ncolour = 1', "colour"),
        ('kind = "song"', "kind"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path: Path, card: str, said: str) -> None:
    with pytest.raises(TaskInvalid, match=said):
        read_task("it", folder(tmp_path, card))


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TaskInvalid, match="no task other"):
        read_task("other", folder(tmp_path, 'kind = "tile"\ndataset = "oral"'))


@pytest.mark.parametrize("name", ["small", "full", "ci"])
def test_the_recipes_parse_and_name_registered_tasks(name: str) -> None:
    recipe = parse_recipe(BenchRecipe, read_toml(RECIPES / f"pathbench-{name}.toml"))
    assert recipe.tasks == "registered" or set(recipe.tasks) <= set(registered())
    if name == "full":
        assert (recipe.linear.rates, recipe.linear.epochs, recipe.linear.patience) == ((5e-4,), 3000, 100)
        assert (recipe.bags.rate, recipe.bags.epochs, len(recipe.seeds)) == (2e-4, 50, 10)
        assert (recipe.survival.folds, recipe.survival.seeds, recipe.survival.protocol) == (5, (1, 2, 3), "nested")
