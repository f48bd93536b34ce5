"""Swin-T with its stem: windows, their shift, and what a mask hides."""

import pytest
import torch

from training.nn import swin
from training.nn.swin import Block, SwinTinyConvStem

pytestmark = pytest.mark.training


def test_windows_come_together_again() -> None:
    x = torch.arange(2.0 * 14 * 14 * 3).reshape(2, 14, 14, 3)
    windows = swin._windows(x)
    assert windows.shape == (2, 4, 49, 3)
    assert torch.equal(windows[0, 1, 0], x[0, 0, 7])
    assert torch.equal(swin._merged(windows, 14), x)


def test_relative_places_count_from_the_corner() -> None:
    places = swin._relative_places()
    assert (int(places[0, 0]), int(places.min()), int(places.max())) == (6 * 13 + 6, 0, 168)
    assert int(places[48, 0]) == 12 * 13 + 12  # six down and six right of the other one


def _block(*, shifted: bool) -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block(12, 3, 14, shifted=shifted).eval()


@pytest.mark.parametrize("shifted", [False, True])
def test_a_place_is_seen_only_in_its_own_window(shifted: bool) -> None:
    """What lies on the other side of the map is never a neighbour, though the roll brings it into one window."""
    block, x = _block(shifted=shifted), torch.randn(1, 14, 14, 12, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[0, 0, 0] += 5.0
    seen = (block(x) != block(other)).any(-1)[0]
    rows, columns = torch.nonzero(seen, as_tuple=True)
    # Rolled by three, the first three rows and columns stand among the last four, which they must not see.
    assert (int(rows.max()), int(columns.max())) == ((2, 2) if shifted else (6, 6))


def test_gives_a_map_and_has_five_masks() -> None:
    network = SwinTinyConvStem().eval()
    swin.initialise(network, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer = network(torch.zeros(1, 3, 224, 224))
    assert answer.shape == (1, 768, 7, 7)
    assert sum(name.endswith("mask_WPP") for name, _ in network.named_buffers()) == 5
    assert not any("mask" in name or "places" in name for name in network.state_dict())
