"""The language of prompts: its words, their numbers and codes, and the table of what a model was trained on."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.sr._concepts_dict import concepts

from gateway.domain.prompts import (
    PATHOLOGY_AT,
    UNSPECIFIED,
    Level,
    PromptRow,
    Triple,
    all_triples,
    code_of,
    levels_of,
    objects,
    read_prompts,
    region_code,
    regions,
    token_ids,
    vocabulary,
    words,
)

EPITHELIAL = Triple(Level.NUCLEI, "epithelial", "colon")
HEADER = "level,object,region,train_images,val_dice,supported\n"
OF_DATA_COMMONS = {"4212006", "31610004", "56972008", "58986001", "80153006", "14793004", "113335003", "41898006"}
"""Cells and epithelium as the conversions of the Imaging Data Commons (NCI) code them; DICOM's tables have none."""


def test_a_triple_is_said_in_the_papers_sentence() -> None:
    assert EPITHELIAL.text == "nuclei-level epithelial in colon pathology"
    assert Triple(Level.TISSUE, "blood vessel").text == "tissue-level blood vessel in unspecified pathology"


def test_the_words_that_must_be_there_are() -> None:
    needed = "nucleus epithelial inflammatory spindle lymphocyte macrophage neutrophil tumor glomerulus gland polyp"
    assert set(needed.split()) <= set(objects())
    assert {"breast", "colon", "kidney", "lymph node", UNSPECIFIED} <= set(regions())
    assert levels_of("epithelial") == (Level.TISSUE, Level.CELL, Level.NUCLEI)
    assert levels_of("glomerulus") == (Level.TISSUE,)
    with pytest.raises(KeyError):
        levels_of("spaceship")


def test_a_token_keeps_its_number_for_ever() -> None:
    """Trained models know words by their numbers: a word is only ever added at the end."""
    known = words()
    assert len(set(known)) == len(known) >= 58
    assert known[:8] == ("", "in", "pathology", "tissue-level", "cell-level", "nuclei-level", UNSPECIFIED, "nucleus")
    assert (known[8], known[26], known[31], known[38], known[39], known[57]) == (
        "epithelial", "tumor", "glomerulus", "breast", "colon", "uterus",
    )  # fmt: skip


def test_a_sentence_is_five_tokens() -> None:
    ids_PL, mask_PL = token_ids([EPITHELIAL, Triple(Level.TISSUE, "plasma cell", "head and neck")])
    assert ids_PL.dtype == mask_PL.dtype == np.int64
    assert [tuple(words()[number] for number in row) for row in ids_PL] == [
        ("nuclei-level", "epithelial", "in", "colon", "pathology"),
        ("tissue-level", "plasma cell", "in", "head and neck", "pathology"),
    ]
    assert words()[ids_PL[0, PATHOLOGY_AT]] == "pathology"
    assert mask_PL.all()
    assert token_ids([])[0].shape == (0, 5)
    with pytest.raises(KeyError):
        token_ids([Triple(Level.NUCLEI, "spaceship", "colon")])


def test_every_code_is_one_that_is_published() -> None:
    in_dicom = {code for rows in concepts["SCT"].values() for code in rows}
    for triple in all_triples():
        category, code = code_of(triple)
        assert category.code in {"91723000", "49755003", "85756007"}
        assert {category.scheme, code.scheme} == {"SCT"}
        assert code.code in in_dicom | OF_DATA_COMMONS
        site = region_code(triple.region)
        assert (site is None) == (triple.region == UNSPECIFIED)
        assert site is None or site.code in in_dicom
    assert code_of(Triple(Level.NUCLEI, "spindle"))[1].display == "Nucleus"  # none of its own: the level's
    assert code_of(EPITHELIAL)[1].display == "Epithelial cell"
    assert code_of(Triple(Level.TISSUE, "epithelial"))[1].display == "Epithelium"


def test_a_table_of_prompts_is_read() -> None:
    text = HEADER + "nuclei,epithelial,colon,210,0.6531,true\ntissue,gland,unspecified,0,,false\n"
    assert read_prompts(text) == (
        PromptRow(EPITHELIAL, 210, 0.6531, True),
        PromptRow(Triple(Level.TISSUE, "gland"), 0, None, False),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "level,object\nnuclei,epithelial\n",
        HEADER + "nuclei,spaceship,colon,1,0.5,true\n",
        HEADER + "nuclei,gland,colon,1,0.5,true\n",
        HEADER + "nuclei,epithelial,moon,1,0.5,true\n",
        HEADER + "nuclei,epithelial,colon,-1,0.5,true\n",
        HEADER + "nuclei,epithelial,colon,1,nan,true\n",
        HEADER + "nuclei,epithelial,colon,1,1.5,true\n",
        HEADER + "nuclei,epithelial,colon,1,0.5,yes\n",
        HEADER + "nuclei,epithelial,colon\n",
        HEADER + 2 * "nuclei,epithelial,colon,1,0.5,true\n",
    ],
)
def test_what_is_no_table_of_prompts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(A|The) "):
        read_prompts(text)


def test_the_page_lists_every_word() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    for table, columns in (("objects", 4), ("regions", 2)):
        listed = {row[0]: row[1:] for row in rows if len(row) == columns}
        for entry in vocabulary()[table]:
            assert listed[entry["name"]][-2 if columns == 4 else 0] == ", ".join(entry["aliases"])
    levels = {row[0]: row[1] for row in rows if len(row) == 4}
    assert all(levels[name] == ", ".join(levels_of(name)) for name in objects())
