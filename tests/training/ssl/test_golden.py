"""Self-distillation's parts against the published implementations' numbers."""

import pytest
import torch

from tests.training import golden
from training.ssl.heads import ProjHead
from training.ssl.losses import Centre, cross_entropy, koleo
from training.ssl.schedules import Schedule

pytestmark = pytest.mark.training


def near(value: object) -> object:
    return pytest.approx(value, rel=1e-4, abs=1e-6)


def test_projection_head() -> None:
    case = golden.case("distill_head")
    head = ProjHead(case["in_dim"], case["out_dim"], layers=case["mlp_layers"], bottleneck=case["bottleneck"])
    head.load_state_dict(golden.weights(case["weights"]))
    out_BK = head(golden.tensor(case["input"])).detach().double()
    expected = case["expected"]
    assert out_BK[0, :8].tolist() == near(expected["row0_first8"])
    assert float(out_BK.sum()) == pytest.approx(expected["sum"], abs=1e-3)
    assert float((out_BK**2).sum()) == near(expected["sum_of_squares"])


def test_dino_loss_and_the_centre_of_the_next_step() -> None:
    case, expected = golden.case("dino_loss"), golden.case("dino_loss")["expected"]
    teacher_BK, student_BK = golden.tensor(case["teacher_logits"]), golden.tensor(case["student_logits"])
    centre = Centre(case["prototypes"], case["center_momentum"])

    def loss() -> float:
        q_BK = centre.targets(teacher_BK, case["teacher_temp"])
        return float(cross_entropy(q_BK, student_BK, case["student_temp"]).mean())

    assert loss() == near(expected["loss_step0"])
    centre.update(teacher_BK)
    assert float(centre.centre.norm()) == near(expected["center_l2_norm_after_update"])
    assert loss() == near(expected["loss_step1"])


def test_koleo() -> None:
    case = golden.case("koleo")
    assert float(koleo(golden.tensor(case["input"]), case["eps"])) == near(case["expected"])


@pytest.mark.parametrize("name", ["lr", "weight_decay", "teacher_momentum", "teacher_temp"])
def test_schedules(name: str) -> None:
    case = golden.case("schedules")
    schedule = Schedule(**case["params"][name])
    found = {iteration: schedule(int(iteration)) for iteration in case["expected"][name]}
    assert found == pytest.approx(case["expected"][name], rel=1e-9)


def test_koleo_in_half_precision_is_computed_in_full() -> None:
    """These neighbours' cosines differ by less than bf16 tells apart."""
    angles = torch.tensor([0.0, 0.02, 0.05, 0.06])
    rows_BD = torch.stack([angles.cos(), angles.sin()], 1)
    expected = float(koleo(rows_BD))
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo(rows_BD)
    assert float(found) == expected
    assert found.dtype == torch.float32
