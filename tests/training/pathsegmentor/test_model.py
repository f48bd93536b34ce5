"""The text-prompted network: its sizes, its selection, the isolation of prompts, and its parts by themselves."""

from pathlib import Path

import cv2
import pytest
import torch
from torch.nn import functional as F

from gateway.domain.prompts import words
from tests.training.pathsegmentor.small_networks import ask, image, network, small
from training.nn.attention import sine_positions
from training.nn.bert import BertConfig
from training.pathsegmentor.decoder import _attended
from training.pathsegmentor.model import PathSegmentor, selection
from training.pathsegmentor.recipe import BertText, DecoderSettings, SegmentorRecipe, TransformerSettings
from training.pathsegmentor.text import pooled
from training.runs import parse_recipe, read_toml

RECIPES = Path(__file__).parents[3] / "training" / "recipes"
A, B = torch.tensor([[3, 5, 1, 7, 2]]), torch.tensor([[4, 6, 1, 8, 2]])


def parts(recipe: str) -> dict[str, int]:
    settings = parse_recipe(SegmentorRecipe, read_toml(RECIPES / f"pathsegmentor-{recipe}.toml"))
    with torch.device("meta"):
        built = PathSegmentor(settings.network, len(words()))
    return {name: sum(value.numel() for value in part.parameters()) for name, part in built.named_children()}


def test_the_small_network_has_800_000_parameters() -> None:
    assert sum(parts("small").values()) == pytest.approx(800_000, rel=0.01)


def test_the_gpu_network_has_20_million_parameters() -> None:
    assert sum(parts("gpu").values()) == pytest.approx(20e6, rel=0.02)


def test_the_full_network_has_the_published_parts() -> None:
    found = parts("full")
    decoder = found["decoder"] + found["pool"]
    published = {"encoder": 205.7e6, "pyramid": 32.2e6, "text": 109.5e6}
    assert {name: found[name] for name in published} == pytest.approx(published, rel=0.01)
    assert decoder == pytest.approx(39.8e6, rel=0.01)
    # 450.7 M are published; the code builds a second text tower of 63.4 M, which it does not use.
    assert sum(found.values()) == pytest.approx(450.7e6 - 63.4e6, rel=0.01)


def test_any_multiple_of_sixteen_is_a_size() -> None:
    found = ask(network(), image(2, 48, 80), torch.cat([A, B]))
    assert found.mask_logits_BPSS.shape == (2, 2, 48, 80)
    assert found.presence_logit_BP.shape == found.match_similarity_BP.shape == (2, 2)
    assert len(found.layers) == 4


def test_other_sizes_are_padded() -> None:
    model = network()
    plain = image(1, 300, 700)[0].permute(1, 2, 0).numpy()
    height, width = plain.shape[:2]
    padded = cv2.copyMakeBorder(plain, 0, -height % model.multiple, 0, -width % model.multiple, cv2.BORDER_REFLECT)
    found = ask(model, torch.from_numpy(padded).permute(2, 0, 1)[None], A)
    assert found.mask_logits_BPSS.shape == (1, 1, 304, 704)
    assert torch.isfinite(found.mask_logits_BPSS).all()


def test_a_prompt_has_the_same_bits_alone_and_among_others() -> None:
    model, picture = network(), image(2, 64, 64)
    alone = ask(model, picture, A)
    for others in (B, torch.cat([B, A, B]), B.flip(1)):
        among = ask(model, picture, torch.cat([A, others]))
        for field in ("mask_logits_BPSS", "presence_logit_BP", "match_similarity_BP"):
            assert torch.equal(getattr(among, field)[:, :1], getattr(alone, field)), field


def test_prompts_are_told_apart() -> None:
    found = ask(network(), image(1, 64, 64), torch.cat([A, B]))
    assert not torch.allclose(found.presence_logit_BP[0, 0], found.presence_logit_BP[0, 1])


def test_tokens_that_are_not_there_do_not_matter() -> None:
    model, picture, mask = network(), image(1, 32, 32), torch.tensor([[1, 1, 1, 0, 1]])
    other = A.clone()
    other[0, 3] = 9
    one, two = ask(model, picture, A, mask), ask(model, picture, other, mask)
    assert torch.equal(one.mask_logits_BPSS, two.mask_logits_BPSS)
    assert not torch.equal(one.presence_logit_BP, ask(model, picture, A).presence_logit_BP)


def test_a_query_whose_mask_is_empty_sees_everything() -> None:
    embedding = torch.tensor([[[-100.0], [1.0]]])  # two queries, one channel
    bias = _attended(embedding, torch.tensor([[[1.0, 2.0, 3.0]]]))
    assert torch.equal(bias, torch.zeros(1, 2, 3))
    bias = _attended(embedding, torch.tensor([[[-1.0, 2.0, 3.0]]]))
    assert torch.equal(bias, torch.tensor([[[0.0, -1e4, -1e4], [-1e4, 0.0, 0.0]]]))


def test_masks_of_minus_100_everywhere_give_finite_answers() -> None:
    model = network()
    model.decoder.mask[-1].weight.zero_()
    model.decoder.mask[-1].bias.fill_(-100.0)
    model.pyramid.mask.weight.zero_()
    model.pyramid.mask.bias.fill_(1.0)
    found = ask(model, image(1, 32, 32), A)
    assert (found.mask_logits_BPSS < -100).all()
    assert torch.isfinite(found.presence_logit_BP).all()


def test_the_query_most_like_the_text_answers() -> None:
    model, picture = network(), image(1, 32, 32)
    found = ask(model, picture, A)
    last = found.layers[-1]
    best = int(last.cosine_NQ.argmax())
    _, features = model.image_encoder(picture)
    masks = model.query_masks(last, features)
    assert masks.shape == (1, 4, 16, 16)
    enlarged = F.interpolate(masks[:, best : best + 1], scale_factor=2.0, mode="bilinear")
    assert torch.allclose(found.mask_logits_BPSS, enlarged, atol=1e-5)
    assert found.match_similarity_BP.item() == pytest.approx(last.cosine_NQ.max().item())


def test_selection_is_one_at_the_largest() -> None:
    assert selection(torch.tensor([[0.1, 0.9, 0.9], [0.5, -1.0, 0.2]])).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_one_query_of_the_prompt() -> None:
    decoder = DecoderSettings(queries=1, layers=3, heads=2, ffn=16, query_per_prompt=True)
    model = network(small(decoder=decoder))
    found = ask(model, image(1, 32, 32), torch.cat([A, B]))
    assert "decoder.queries" not in model.state_dict()
    assert found.layers[0].embedding_NQD.shape == (2, 1, 16)
    assert not torch.equal(found.mask_logits_BPSS[:, 0], found.mask_logits_BPSS[:, 1])


@pytest.mark.parametrize(("how", "expected"), [("mean", [2.0, 7.0]), ("cls", [1.0, 6.0]), ("last", [3.0, 8.0])])
def test_pooling_takes_the_tokens_that_are_there(how: str, expected: list[float]) -> None:
    tokens = torch.tensor([[[1.0], [9.0], [3.0], [9.0]], [[6.0], [7.0], [8.0], [0.0]]])
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]])
    assert pooled(tokens, mask, how).squeeze(-1).tolist() == expected


def test_the_published_form_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sine positions, norms after their branches, Mask2Former's pyramid, a BERT that is trained along."""
    tiny = BertConfig(vocabulary=30, positions=64, width=16, depth=1, heads=2, mlp=16)
    monkeypatch.setattr("training.pathsegmentor.bert_text.PUBMEDBERT", tiny)
    settings = small(
        width=32,
        transformer=TransformerSettings(layers=1, heads=2, ffn=32),
        text=BertText(tower="pubmedbert", vocabulary_file="vocab.txt"),
        decoder=DecoderSettings(queries=4, layers=3, heads=2, ffn=32, norm="post", sine=True),
        full_resolution=False,
    )
    model = network(settings)
    model.text.pieces[:, 0] = torch.arange(20)
    found = ask(model, image(1, 48, 64), torch.cat([A, B]))
    assert found.mask_logits_BPSS.shape == (1, 2, 24, 32)
    assert torch.isfinite(found.mask_logits_BPSS).all()
    assert not torch.equal(found.presence_logit_BP[:, 0], found.presence_logit_BP[:, 1])


def test_sine_positions_tell_rows_from_columns() -> None:
    grid = sine_positions(3, 5, 8, torch.device("cpu")).unflatten(0, (3, 5))
    assert torch.equal(grid[0, :, :4], grid[0, :1, :4].expand(5, 4))  # the first half is the row's
    assert torch.equal(grid[:, 0, 4:], grid[:1, 0, 4:].expand(3, 4))  # the second half the column's
    assert grid[0, 0, 0].item() == pytest.approx(torch.sin(torch.tensor(2 * torch.pi / 3)).item(), abs=1e-6)
    assert len({tuple(row.tolist()) for row in grid.flatten(0, 1)}) == 15
