"""The language of segmentation by words: `nuclei-level epithelial in colon pathology`.

PathSegmentor (arXiv 2506.20988): a prompt is a triple of a level, an object and a region, said in one sentence of five
words; an object or region of several words counts as one. tables/prompt_words.json holds the words; adding an object is
one row. How free text becomes a triple is in gateway.operations.prompts.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from gateway.domain.codes import Code

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_PROMPTS = 32
"""Prompts of an order at the most: as many as are answered of one picture at a time."""

UNSPECIFIED = "unspecified"
"""The region where none is named."""

LEVEL_AT, OBJECT_AT, REGION_AT, PATHOLOGY_AT = 0, 1, 3, 4
"""Where in the sentence's five words each stands; word 2 is `in`."""

PROMPT_COLUMNS = ("level", "object", "region", "train_images", "val_dice", "supported")


class Level(StrEnum):
    """The scale of the structure that is asked for. Cells annotated as regions are tissue (the paper's convention)."""

    TISSUE = "tissue"
    CELL = "cell"
    NUCLEI = "nuclei"


@dataclass(frozen=True, slots=True, order=True)
class Triple:
    """What a prompt asks for."""

    level: Level
    object: str
    region: str = UNSPECIFIED

    @property
    def words(self) -> tuple[str, str, str, str, str]:
        """The sentence, word by word."""
        return f"{self.level}-level", self.object, "in", self.region, "pathology"

    @property
    def text(self) -> str:
        """The sentence: the label of everything that is said of the triple."""
        return " ".join(self.words)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of `prompts.csv`: the images a model learned the triple from, its Dice on validation images (None: none
    held it), and whether that is enough for it to count as supported."""

    triple: Triple
    train_images: int
    val_dice: float | None
    supported: bool


@cache
def vocabulary() -> Mapping[str, Any]:
    """The table of words as it lies in its file."""
    text = resources.files("gateway.domain.tables").joinpath("prompt_words.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def words() -> tuple[str, ...]:
    """Every word of the grammar, by token id; id 0 is padding. Words are only ever added, at the end."""
    table = vocabulary()
    rows = sorted([*table["objects"], *table["regions"]], key=lambda row: int(row["token"]))
    return (*table["words"], *(row["name"] for row in rows))


def objects() -> tuple[str, ...]:
    """The objects, in the table's order."""
    return tuple(_objects())


def regions() -> tuple[str, ...]:
    """The regions, UNSPECIFIED the last."""
    return (*_regions(), UNSPECIFIED)


def levels_of(name: str) -> tuple[Level, ...]:
    """The levels at which an object can be asked for. Raises KeyError for a word that is none."""
    return tuple(Level(level) for level in _objects()[name]["levels"])


def token_ids(triples: Sequence[Triple]) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
    """The sentences as token ids (P,5) and their mask (P,5), all ones. Raises KeyError for words not in the table."""
    import numpy as np  # here, since the process that answers requests does without it

    numbers = _token_numbers()
    ids = np.array([[numbers[word] for word in triple.words] for triple in triples], np.int64).reshape(-1, 5)
    return ids, np.ones_like(ids)


def code_of(triple: Triple) -> tuple[Code, Code]:
    """Category and type of the segmented property (DICOM CIDs 7150 and 7151). Nuclei of a kind of cell have the cell's
    code, as public conversions to DICOM have them. The generic code of the level stands where the object has none.
    Raises KeyError for an object that is not in the table."""
    table = vocabulary()
    codes = _objects()[triple.object]["codes"]
    category, code, display = codes.get(triple.level) or codes.get("*") or table["generic"][triple.level]
    category_code, category_display = table["categories"][category]
    return Code(category_code, "SCT", category_display), Code(code, "SCT", display)


def region_code(region: str) -> Code | None:
    """A region as a body site (DICOM CID 645 and others); None for UNSPECIFIED. Raises KeyError for another word."""
    if region == UNSPECIFIED:
        return None
    code, display = _regions()[region]["code"]
    return Code(code, "SCT", display)


def read_prompts(text: str) -> tuple[PromptRow, ...]:
    """The rows of a `prompts.csv`. Raises ValueError where it is none: other columns, words that are not in the table,
    a triple twice, or figures that are none."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != PROMPT_COLUMNS:
        raise ValueError(f"A table of prompts has the columns {', '.join(PROMPT_COLUMNS)}.")
    rows = tuple(_row(row) for row in reader)
    if len({row.triple for row in rows}) != len(rows):
        raise ValueError("The table of prompts names a triple twice.")
    return rows


def _row(row: Mapping[str, str]) -> PromptRow:
    try:
        triple = Triple(Level(row["level"]), row["object"], row["region"])
        known = triple.level in levels_of(triple.object) and triple.region in regions()
        count, dice = int(row["train_images"]), float(row["val_dice"]) if row["val_dice"] else None
        supported = {"true": True, "false": False}[row["supported"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError("A row of the table of prompts is not one: a word or a figure is not known.") from None
    if not known or count < 0 or (dice is not None and not 0.0 <= dice <= 1.0):
        raise ValueError(f"The table of prompts has a row that cannot be: {triple.text}.")
    return PromptRow(triple, count, dice, supported)


def all_triples() -> Iterable[Triple]:
    """Every triple that can be asked for."""
    for name in objects():
        for level in levels_of(name):
            for region in regions():
                yield Triple(level, name, region)


@cache
def _objects() -> Mapping[str, Any]:
    return {row["name"]: row for row in vocabulary()["objects"]}


@cache
def _regions() -> Mapping[str, Any]:
    return {row["name"]: row for row in vocabulary()["regions"]}


@cache
def _token_numbers() -> Mapping[str, int]:
    return {word: number for number, word in enumerate(words())}
