"""FocalNet: its maps, what its modulation sees, and what is left out in training."""

import torch

from training.nn.focalnet import FocalBlock, FocalModulation, FocalNet


def test_maps_are_at_strides_4_to_32() -> None:
    torch.manual_seed(0)
    maps = FocalNet(embed=8, depths=(1, 1, 2, 1), levels=2, window=3, drop_path=0.0)(torch.rand(2, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]


def test_modulation_with_the_global_gate_alone_sees_the_whole_map() -> None:
    """By hand: one channel, all weights one, every gate but the global one shut."""
    block = FocalModulation(1, levels=1, window=3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(1.0)
        block.f.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 2.0]))  # query, context, local gate, global gate
        block.f.weight.copy_(torch.tensor([[1.0], [1.0], [0.0], [0.0]]))
        for linear in (block.h, block.proj):
            linear.bias.zero_()
        x = torch.arange(9.0).reshape(1, 3, 3, 1)
        context = block.focal_layers[0](x.permute(0, 3, 1, 2))
        expected = x * (torch.nn.functional.gelu(context.mean()) * 2.0 / 2)
        assert torch.allclose(block(x), expected)


def test_a_branch_is_left_out_in_training_only() -> None:
    torch.manual_seed(0)
    block, x = FocalBlock(8, levels=1, window=3, drop_path=0.999999), torch.rand(2, 4, 4, 8)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)
