"""Weights that do not fit are refused by name; what fp16 holds exactly is stored as fp16."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from training.errors import WeightsInvalid
from training.nn.checkpoints import load_state, read_weights, round_to_fp16, save_weights

pytestmark = pytest.mark.training


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))


def test_round_trip_is_exact_and_half_sized(network: nn.Module, tmp_path: Path) -> None:
    round_to_fp16(network)
    save_weights(tmp_path / "weights.safetensors", network)
    stored = load_file(tmp_path / "weights.safetensors")
    assert stored["0.weight"].dtype == torch.float16
    assert stored["0.bias"].dtype == torch.float32
    read = read_weights(tmp_path / "weights.safetensors")
    assert all(torch.equal(read[key], network.state_dict()[key]) for key in read)


def test_unrounded_weights_keep_all_their_bits(network: nn.Module, tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.safetensors", network)
    assert torch.equal(read_weights(tmp_path / "weights.safetensors")["0.weight"], network.state_dict()["0.weight"])


def test_saving_twice_gives_the_same_bytes(network: nn.Module, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(tmp_path / name, network)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("1.running_var"), "lack 1.running_var"),
        (lambda state: state.update({"0.weight": torch.zeros(32, 63)}), r"differ from the network at 0\.weight"),
        (lambda state: state.update({"9.weight": torch.zeros(1)}), "hold 9.weight, which the network does not have"),
        (lambda state: state["2.weight"].__setitem__((0, 0), float("nan")), "NaN or infinite values in 2.weight"),
    ],
    ids=["missing", "shape", "surplus", "nan"],
)
def test_weights_that_do_not_fit_are_refused_by_name(network: nn.Module, change, sentence: str) -> None:
    state = {key: value.clone() for key, value in network.state_dict().items()}
    change(state)
    with pytest.raises(WeightsInvalid, match=sentence):
        load_state(network, state, "a run")


def test_the_first_differing_key_is_the_networks_first(network: nn.Module) -> None:
    with pytest.raises(WeightsInvalid, match=r"0\.weight"):
        load_state(network, {"2.bias": torch.zeros(7)}, "a run")


@pytest.mark.parametrize("content", [b"", b"\x08", None], ids=["empty", "cut", "absent"])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(WeightsInvalid, match=r"weights\.safetensors"):
        read_weights(tmp_path / "weights.safetensors")
