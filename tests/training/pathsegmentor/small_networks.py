"""Networks small enough for tests, and inputs for them."""

import torch
from torch import Tensor

from gateway.domain.prompts import words
from training.pathsegmentor.model import PathSegmentor, Prediction
from training.pathsegmentor.recipe import ConvEncoder, DecoderSettings, Network, WordsText

VOCABULARY = 20


def small(**changes: object) -> Network:
    """A network of the small recipe's kind, a fraction of its size."""
    values = {
        "width": 16,
        "encoder": ConvEncoder(arch="conv", widths=(8, 8, 16, 16)),
        "text": WordsText(tower="words", layers=1, heads=2, ffn=16),
        "decoder": DecoderSettings(queries=4, layers=3, heads=2, ffn=16),
    }
    return Network(**(values | changes))


def network(settings: Network | None = None, seed: int = 0) -> PathSegmentor:
    """One with weights of chance."""
    torch.manual_seed(seed)
    return PathSegmentor(settings or small(), VOCABULARY).eval().requires_grad_(False)


def smallest() -> PathSegmentor:
    """One of the prompts' own words, with weights of chance, for what asks it often."""
    torch.manual_seed(1)
    settings = small(
        encoder=ConvEncoder(arch="conv", widths=(8, 8, 8, 8), convs=(1, 1, 1, 1)),
        decoder=DecoderSettings(queries=4, layers=1, heads=2, ffn=16),
    )
    return PathSegmentor(settings, len(words())).eval().requires_grad_(False)


def image(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(count,3,height,width), 0-255."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def ask(model: PathSegmentor, image_N3HW: Tensor, ids_PL: Tensor, mask_PL: Tensor | None = None) -> Prediction:
    """The answers of every image to every prompt."""
    mask_PL = torch.ones_like(ids_PL) if mask_PL is None else mask_PL
    scales, features = model.image_encoder(image_N3HW)
    texts = (*model.text_encoder(ids_PL, mask_PL), mask_PL)
    return model.decode(scales, features, *(part[None].expand(len(image_N3HW), *part.shape) for part in texts))
