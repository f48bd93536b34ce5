"""The prompts of an order as the models of masks take them: what was asked, its text vectors, what must be said of it.

A prompt's vectors depend on nothing but its triple and the engine, and are kept for the process's life.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.slide_half import Engine, ServedModel
from gateway.domain.codes import Code
from gateway.domain.model import ModelCard, PromptEntry
from gateway.domain.prompts import UNSPECIFIED, Triple, region_code, token_ids, words
from gateway.domain.report import Finding, FindingKind
from gateway.domain.tables import finding_code
from gateway.operations.errors import InferenceError, ModelRefused
from gateway.operations.prompts import parse

_KEPT = 512

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of an order: its place (from 0), its text as given, what is understood by it, and what the model's
    card says of that (None: the model was never trained on it)."""

    index: int
    prompt: str
    triple: Triple
    entry: PromptEntry | None

    @property
    def supported(self) -> bool:
        return self.entry is not None and self.entry.supported


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Text vectors of P prompts: `tokens_PLd`, `global_Pd` float32, `mask_PL` int64."""

    tokens_PLd: Array
    global_Pd: Array
    mask_PL: npt.NDArray[np.int64]

    def repeated(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """The text inputs of a decoder for a batch of images, each with all the prompts."""
        return {
            "text_tokens": np.repeat(self.tokens_PLd[None], batch, axis=0),
            "text_global": np.repeat(self.global_Pd[None], batch, axis=0),
            "text_mask": np.repeat(self.mask_PL[None], batch, axis=0),
        }


def asked(prompts: Sequence[str], card: ModelCard) -> tuple[Asked, ...]:
    """The prompts of an order, in its order. Raises PromptInvalid."""
    triples = [parse(prompt) for prompt in prompts]
    known = card.prompts
    return tuple(
        Asked(index, prompt, triple, None if known is None else known.entry(triple.text))
        for index, (prompt, triple) in enumerate(zip(prompts, triples, strict=True))
    )


_vectors: OrderedDict[tuple[str, Triple], tuple[Array, Array]] = OrderedDict()
_lock = Lock()


async def text_vectors(model: ServedModel, triples: Sequence[Triple], engine: Engine) -> Texts:
    """The vectors of these triples from `pathseg_text` (token_ids, token_mask INT64 [P,L] -> text_tokens FP32 [P,L,d],
    text_global FP32 [P,d]); only those that are not known yet are asked for. A word that came after the model is left
    out: its triple is none that the card supports.

    Raises ModelRefused where the model knows other words than the gateway, InferenceError.
    """
    # Words are only ever added to the table: a model of an earlier one knows its first words.
    known = model.card.vocabulary_size or 0
    if model.card.tokenizer_sha256 != hashlib.sha256("\n".join(words()[:known]).encode()).hexdigest():
        raise ModelRefused(
            f"The model {model.folder} was made for another table of words than this gateway has. Promote another "
            "version, or install the release that it belongs to."
        )
    engine_sha256 = model.card.version.engine_sha256
    with _lock:
        found = {triple: _vectors.get((engine_sha256, triple)) for triple in triples}
    missing = [triple for triple, vectors in found.items() if vectors is None]
    if missing:
        ids_PL, mask_PL = token_ids(missing)
        strange_PL = ids_PL >= known
        ids_PL[strange_PL], mask_PL[strange_PL] = 0, 0
        answer = await engine.infer(model.folder, {"token_ids": ids_PL, "token_mask": mask_PL})
        tokens_PLd, global_Pd = answer["text_tokens"], answer["text_global"]
        if not (np.isfinite(tokens_PLd).all() and np.isfinite(global_Pd).all()):
            raise InferenceError(f"The model {model.folder} answered with what is no finite number.")
        new = {triple: (tokens_PLd[p], global_Pd[p]) for p, triple in enumerate(missing)}
        found.update(new)
        with _lock:
            _vectors.update({(engine_sha256, triple): vectors for triple, vectors in new.items()})
            while len(_vectors) > _KEPT:
                _vectors.popitem(last=False)
    vectors = [found[triple] for triple in triples]
    return Texts(
        np.stack([each[0] for each in vectors if each is not None]),
        np.stack([each[1] for each in vectors if each is not None]),
        token_ids(triples)[1],
    )


def distinct(prompts: Sequence[Asked]) -> tuple[Asked, ...]:
    """The first of those that are understood as the same, in their order."""
    first: dict[Triple, Asked] = {}
    for each in prompts:
        first.setdefault(each.triple, each)
    return tuple(first.values())


def repeated_findings(prompts: Sequence[Asked], series: str, *, answered: str) -> Iterator[Finding]:
    """Which prompts of an order are understood as the same, and how these are answered, in a clause."""
    for triple, times in Counter(each.triple for each in prompts).items():
        if times > 1:
            yield Finding(
                kind=FindingKind.SETTING,
                code=finding_code("prompt-repeated"),
                text=f"{times} prompts are understood as “{triple.text}”; {answered}.",
                series=series,
            )


def prompt_findings(prompts: Sequence[Asked], card: ModelCard, site: Code | None, series: str) -> tuple[Finding, ...]:
    """What the reader must know of the prompts themselves: which the model was not validated for, and which name
    another region than the slide's site (unknown sites differ from nothing)."""
    findings: list[Finding] = []
    for each in prompts:
        if not each.supported:
            known = "was not good enough at it in validation" if each.entry else "was not trained on it"
            findings.append(
                Finding(
                    kind=FindingKind.INTENDED_USE,
                    code=finding_code("not-validated"),
                    text=f"Not validated for this tissue: “{each.triple.text}”. The model {known}.",
                    series=series,
                )
            )
        region = None if each.triple.region == UNSPECIFIED else region_code(each.triple.region)
        if region is not None and site is not None and not site.same_as(region):
            findings.append(
                Finding(
                    kind=FindingKind.INTENDED_USE,
                    code=finding_code("prompt-site-differs"),
                    text=f"The prompt “{each.triple.text}” names {each.triple.region}; the slide is of "
                    f"{site.display!r}.",
                    series=series,
                )
            )
    return tuple(findings)
