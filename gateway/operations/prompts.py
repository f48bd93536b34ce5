"""Free text -> the triple that it asks for, or one sentence that says what was not understood.

Nothing is guessed: a word is known, or a plural of a known one, or it differs from known words of a single meaning in
one or two letters; the level is said, or the object has only one. The triple is echoed wherever its answer stands.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Literal

from rapidfuzz import process
from rapidfuzz.distance import OSA, Indel

from gateway.domain.prompts import UNSPECIFIED, Level, Triple, levels_of, objects, vocabulary
from gateway.operations.errors import PromptInvalid

LONGEST = 200
"""Characters of a prompt, at most."""

_EXAMPLE = "nuclei-level epithelial in colon pathology"
_PLAIN = re.compile(r"[a-z0-9 \-'\",.;:()/&?!]*")
_PLAINER = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "œ": "oe", "æ": "ae"})
_SHOWN_WORDS, _SHOWN_LETTERS, _NEAREST = 3, 16, 5
_ALIKE = 0.65
_SHORTEST_GUESS, _TWO_EDITS_FROM = 4, 7
"""Letters from which a word may differ in one letter, and in two: shorter words are too near to one another."""
_MOST_GUESSES = 8
"""Unknown words that are compared with the known ones; text with more of them is no prompt."""

Kind = Literal["level", "nuclei", "object", "region", "noun", "filler"]
"""What a phrase is. `nuclei` is a level beside an object, and an object without one; a `noun` says the level only where
it follows an object ("tumor tissue", not "breast tissue")."""

_Words = tuple[str, ...]


@dataclass(slots=True)
class _Found:
    """What a prompt names, each thing once, in its order."""

    levels: dict[Level, None] = field(default_factory=dict)
    objects: dict[str, None] = field(default_factory=dict)
    regions: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    nuclei: bool = False


def parse(text: str) -> Triple:
    """The triple that a prompt asks for; its region is UNSPECIFIED where none is named.

    Raises PromptInvalid: empty, too long, with characters that no prompt has, with words that are not understood, with
    a negation, with two levels, objects or regions, without an object, or without a level that only the asker can tell.
    """
    tokens = _tokens(text)
    if any(token in _listed("negations") for token in tokens):
        raise PromptInvalid(
            "The prompt says what not to look for. Name what is to be outlined; whether it is there is answered."
        )
    found = _read(tokens)
    if found.unknown:
        raise PromptInvalid(_not_understood(found))
    return _triple(found)


def _tokens(text: str) -> list[str]:
    """The prompt's words in lower case. Raises PromptInvalid for what cannot be a prompt; of such text nothing is
    repeated."""
    if not text.strip():
        raise PromptInvalid(f'The prompt is empty. Write what to outline, as in "{_EXAMPLE}".')
    if len(text) > LONGEST:
        raise PromptInvalid(f'The prompt has more than {LONGEST} characters. Name one object, as in "{_EXAMPLE}".')
    # As it is given, it is shown in reports: nothing in it may break a line, or stand over what is beside it.
    kinds = {unicodedata.category(character) for character in unicodedata.normalize("NFC", text)}
    if any(kind[0] == "C" or kind in ("Zl", "Zp") for kind in kinds):
        raise PromptInvalid(f'The prompt has control characters in it. Write one line, as in "{_EXAMPLE}".')
    if any(kind[0] == "M" for kind in kinds):
        raise PromptInvalid(f'The prompt has marks on letters that have none. Write as in "{_EXAMPLE}".')
    # Letters are read without their accents, and dashes and quotes of every shape as plain ones.
    letters = unicodedata.normalize("NFKD", text.strip().lower()).translate(_PLAINER)
    of_kind = ((letter, unicodedata.category(letter)) for letter in letters)
    plain = "".join("-" if kind == "Pd" else letter for letter, kind in of_kind if kind != "Mn")
    if not _PLAIN.fullmatch(" ".join(plain.split())):
        raise PromptInvalid(f'The prompt has characters that are in no word or sentence. Write as in "{_EXAMPLE}".')
    return re.findall(r"[a-z0-9]+", plain.replace("n't", " not"))


def _read(tokens: Sequence[str]) -> _Found:
    """The phrases of a prompt, the longest first at every place."""
    known = _Found()
    guesses = iter(range(_MOST_GUESSES))
    words = [_known_word(token, guesses) or token for token in tokens]
    place, after_object = 0, False
    while place < len(words):
        for length in range(min(_longest_phrase(), len(words) - place), 0, -1):
            meaning = _phrases().get(tuple(words[place : place + length]))
            if meaning is not None:
                break
        else:
            known.unknown[tokens[place]] = None
            place, after_object = place + 1, False
            continue
        kind, value = meaning
        if kind == "object":
            known.objects[value] = None
        elif kind == "region":
            known.regions[value] = None
        elif kind == "nuclei":
            known.nuclei = True
        elif kind == "level" or (kind == "noun" and value and after_object):
            known.levels[Level(value)] = None
        place, after_object = place + length, kind in ("object", "nuclei")
    if known.nuclei and known.objects:
        known.levels[Level.NUCLEI] = None
    elif known.nuclei:
        known.objects["nucleus"] = None
    return known


def _triple(found: _Found) -> Triple:
    """The one triple of what was found. Raises PromptInvalid."""
    for names, thing in ((found.regions, "regions"), (found.objects, "objects"), (found.levels, "levels")):
        if len(names) > 1:
            first, second, *_ = names
            raise PromptInvalid(f"The prompt names two {thing}, {first} and {second}. Ask for each in its own prompt.")
    (region,) = found.regions or (UNSPECIFIED,)
    if not found.objects:
        choices = _choices(_nearest(found))
        raise PromptInvalid(f"The prompt does not say what to outline. Name an object, as in {choices}.")
    (name,) = found.objects
    levels = levels_of(name)
    if not found.levels and len(levels) > 1:
        choices = _choices(Triple(level, name, region) for level in levels)
        raise PromptInvalid(f"The prompt does not say at which level {name} is meant. Write {choices}.")
    (level,) = found.levels or levels
    if level not in levels:
        choices = _choices(Triple(other, name, region) for other in levels)
        raise PromptInvalid(f"The prompt contradicts itself: there is no {level}-level {name}. Write {choices}.")
    return Triple(level, name, region)


def _not_understood(found: _Found) -> str:
    """Which words, cut short, and the nearest prompts."""
    shown = [word[:_SHOWN_LETTERS] + ("…" if len(word) > _SHOWN_LETTERS else "") for word in found.unknown]
    more = len(shown) - _SHOWN_WORDS
    listed = ", ".join(f'"{word}"' for word in shown[:_SHOWN_WORDS]) + (f" and {more} more" if more > 0 else "")
    verb = "words are" if len(shown) > 1 else "word is"
    return f"The prompt's {verb} not understood: {listed}. Nearest are {_choices(_nearest(found))}."


def _nearest(found: _Found) -> list[Triple]:
    """The five prompts nearest to what was understood, and to the words that were not."""
    unknown = list(found.unknown)[:_MOST_GUESSES]
    region = next(iter(found.regions or _most_alike(unknown, "region")), UNSPECIFIED)
    triples: dict[Triple, None] = {}
    for name in found.objects or _most_alike(unknown, "object"):
        levels = [level for level in levels_of(name) if level in found.levels] or levels_of(name)
        triples |= {Triple(level, name, region): None for level in levels}
    for name in objects():
        levels = [level for level in levels_of(name) if level in found.levels or not found.levels]
        triples |= {Triple(level, name, region): None for level in levels[-1:]}
    return list(triples)[:_NEAREST]


def _most_alike(unknown: Iterable[str], kind: Kind) -> list[str]:
    """Objects or regions with a word like an unknown one, the likest first (by what two words have in common, in its
    order, of their letters)."""
    scores: dict[str, float] = {}
    known = [(word, value) for phrase, (of_kind, value) in _phrases().items() if of_kind == kind for word in phrase]
    for word in unknown:
        shown, choices = word[: 2 * _SHOWN_LETTERS], [each for each, _ in known]
        alike = process.extract(shown, choices, scorer=Indel.normalized_similarity, score_cutoff=_ALIKE, limit=None)
        for _, score, place in alike:
            value = known[place][1]
            scores[value] = max(scores.get(value, 0.0), score)
    return sorted(scores, key=lambda value: -scores[value])


def _choices(triples: Iterable[Triple]) -> str:
    *first, last = [f'"{triple.text}"' for triple in triples]
    return f"{', '.join(first)} or {last}" if first else last


def _known_word(token: str, guesses: Iterator[int]) -> str | None:
    """The known word that a token is, is a plural of, or can alone be meant by; None where there is none."""
    for form in _singulars(token):
        if form in _meanings():
            return form
    if len(token) < _SHORTEST_GUESS or next(guesses, None) is None:
        return None
    return _meant(token)


@lru_cache(maxsize=4096)
def _meant(token: str) -> str | None:
    """The word that can alone be meant by an unknown one: by insertions, deletions, substitutions, and neighbours
    exchanged (optimal string alignment)."""
    most = 1 if len(token) < _TWO_EDITS_FROM else 2
    near: dict[int, dict[str, str]] = {}
    for form in _singulars(token):
        for word, edits, _ in process.extract(form, _guessed(), scorer=OSA.distance, score_cutoff=most, limit=None):
            near.setdefault(edits, {}).setdefault(_meanings()[word], word)
    meanings = near[min(near)] if near else {}
    return next(iter(meanings.values())) if len(meanings) == 1 else None


def _singulars(token: str) -> Iterator[str]:
    yield token
    if len(token) > 3 and token.endswith("s"):
        yield token[:-1]
        if token.endswith("es"):
            yield token[:-2]
        if token.endswith("ies"):
            yield token[:-3] + "y"


@cache
def _listed(name: str) -> frozenset[str]:
    return frozenset(vocabulary()[name].split())


@cache
def _phrases() -> Mapping[_Words, tuple[Kind, str]]:
    """Every phrase by its words, and what it means."""
    table = vocabulary()
    phrases: dict[_Words, tuple[Kind, str]] = {(word,): ("filler", "") for word in _listed("fillers")}
    for word, level in table["nouns"].items():
        phrases[(word,)] = ("noun", level)
    for level, names in table["level_words"].items():
        for word in names:
            phrases[(word, "level")] = ("level", level)
    kinds: tuple[tuple[Kind, str], ...] = (("object", "objects"), ("region", "regions"))
    for kind, rows in kinds:
        for row in table[rows]:
            for phrase in (row["name"], *row["aliases"]):
                meaning: tuple[Kind, str] = ("nuclei", "") if row["name"] == "nucleus" else (kind, row["name"])
                phrases[tuple(phrase.split())] = meaning
    for word in table["unspecified"]:
        phrases[(word,)] = ("region", UNSPECIFIED)
    return phrases


@cache
def _longest_phrase() -> int:
    return max(len(phrase) for phrase in _phrases())


@cache
def _meanings() -> Mapping[str, str]:
    """Every known word, and what tells its meaning from another's: a word of two forms of one thing ("epithelium",
    "epithelial") may be mistaken for its other form. Strangers are words of pathology that are in no prompt: they are
    known, so that they are not taken for another word."""
    meanings = {word: word for phrase in _phrases() for word in phrase}
    meanings |= {phrase[0]: f"{kind} {value}" for phrase, (kind, value) in _phrases().items() if len(phrase) == 1}
    return meanings | {word: word for word in (_listed("strangers") - meanings.keys()) | _listed("negations")}


@cache
def _guessed() -> tuple[str, ...]:
    return tuple(word for word in _meanings() if len(word) >= _SHORTEST_GUESS)
