import pytest
import torch

from training.ssl.heads import ProjHead, initialise

pytestmark = pytest.mark.training


@pytest.mark.parametrize(("layers", "linears"), [(1, [""]), (2, ["0.", "2."]), (3, ["0.", "2.", "4."])])
def test_names_are_those_of_published_checkpoints(layers: int, linears: list[str]) -> None:
    names = {name for name, _ in ProjHead(8, 5, layers=layers, hidden=16, bottleneck=4).named_parameters()}
    mlp = {f"mlp.{place}{part}" for place in linears for part in ("weight", "bias")}
    assert names == mlp | {"last_layer.weight_g", "last_layer.weight_v"}


def test_rows_of_the_last_layer_have_the_length_g() -> None:
    head = ProjHead(8, 5, layers=1, bottleneck=4)
    initialise(head, torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.last_layer.weight_g.fill_(3.0)
        head.mlp.weight.zero_()
        head.mlp.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    direction_K = head.last_layer.weight_v[:, 0] / head.last_layer.weight_v.norm(dim=1)
    torch.testing.assert_close(head(torch.zeros(1, 8))[0], 3 * direction_K)


def test_the_same_seed_gives_the_same_weights_and_gradients_reach_all_of_them() -> None:
    heads = [ProjHead(8, 5, layers=3, hidden=16, bottleneck=4) for _ in range(2)]
    for head in heads:
        initialise(head, torch.Generator().manual_seed(3))
    for one, other in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.equal(one, other)
    heads[0](torch.ones(2, 3, 8)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in heads[0].parameters())
