"""BERT without its pooler, and word pieces."""

import pytest
import torch

from training.nn.bert import MINILM, PUBMEDBERT, Bert, BertConfig, word_pieces

PIECES = ["[PAD]", "[UNK]", "nu", "##cle", "##i", "-", "level", "tumor", "nucle", "##us"]
VOCABULARY = {piece: number for number, piece in enumerate(PIECES)}


def test_pieces_are_the_longest_that_fit() -> None:
    named = [PIECES[number] for number in word_pieces("Nuclei-level  TUMOR", VOCABULARY)]
    assert named == ["nucle", "##i", "-", "level", "tumor"]


def test_a_word_that_cannot_be_cut_is_unknown() -> None:
    assert word_pieces("nucleus gland", VOCABULARY) == [8, 9, 1]


@pytest.mark.parametrize(("config", "expected"), [(PUBMEDBERT, 108_891_648), (MINILM, 22_565_376)])
def test_sizes_are_the_published_ones_without_pooler(config: BertConfig, expected: int) -> None:
    with torch.device("meta"):
        bert = Bert(config)
    assert sum(value.numel() for value in bert.parameters()) == expected


def test_pieces_that_are_not_there_leave_no_gap() -> None:
    torch.manual_seed(0)
    bert = Bert(BertConfig(vocabulary=30, positions=16, width=16, depth=2, heads=2, mlp=32)).eval()
    ids, there = torch.tensor([[5, 9, 3, 7, 2]]), torch.tensor([[True, False, True, False, True]])
    close = bert(ids[:, there[0]], torch.ones(1, 3, dtype=torch.bool))
    assert torch.allclose(bert(ids, there)[:, there[0]], close, atol=1e-6)
    assert not torch.allclose(bert(ids, torch.ones_like(there))[:, there[0]], close, atol=1e-3)
