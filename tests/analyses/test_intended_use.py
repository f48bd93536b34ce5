"""Organ and stain of order and header against the card; unknown is outside, never guessed."""

import dataclasses

import pytest

from gateway.analyses.intended_use import compare
from gateway.domain.codes import Code
from gateway.domain.model import IntendedUse, ModelCard, ModelVersion
from gateway.domain.order import SlideReference, Specimen
from gateway.domain.slide import SlideHeader
from gateway.domain.tables import stain_name

COLON = Code("71854001", "SCT", "Colon")
STOMACH = Code("69695003", "SCT", "Stomach")
RESECTION = Code("65801008", "SCT", "Excision")
BIOPSY = Code("86273004", "SCT", "Biopsy")
HE = (Code("12710003", "SCT", "hematoxylin stain"), Code("36879007", "SCT", "water soluble eosin stain"))
PAP = (Code("12710003", "SCT", "hematoxylin stain"), Code("54221006", "SCT", "orange G stain"))
CARD = ModelCard(
    name="m",
    title="M",
    kind="head",
    mpp=0.5,
    tile_px=224,
    labels=(),
    intended_use=IntendedUse(statement="s", organs=(COLON,), specimen_types=(), stains=("HE",)),
    operating_points=(),
    version=ModelVersion(
        name="m", version="1", kind="head", target="onnx", precision="fp32", engine_sha256="", weights_sha256="",
        recipe="", recipe_sha256="", manifest_sha256="",
    ),
    limits=(),
)  # fmt: skip
HEADER = SlideHeader(study_uid="1.2", series_uid="1.2.3", stains=HE, site=COLON)
SPECIMEN = Specimen(slides=(SlideReference("1.2"),))


def keys(specimen: Specimen, header: SlideHeader) -> list[str]:
    return [finding.code.code for finding in compare(specimen, header, CARD).findings]


def test_inside_by_header_alone() -> None:
    use = compare(SPECIMEN, HEADER, CARD)
    assert not use.exploratory
    assert (use.stain, use.site) == ("HE", COLON)


def test_inside_by_order_alone() -> None:
    ordered = dataclasses.replace(SPECIMEN, stain="HE", site=COLON)
    assert keys(ordered, dataclasses.replace(HEADER, stains=(), site=None)) == []


@pytest.mark.parametrize(
    ("specimen", "header", "expected"),
    [
        ({}, {"site": None}, ["organ-unknown"]),
        ({}, {"site": STOMACH}, ["organ-outside"]),
        ({"site": STOMACH}, {}, ["organ-conflict"]),
        ({}, {"stains": ()}, ["stain-unknown"]),
        ({}, {"stains": PAP}, ["stain-outside"]),
        ({"stain": "PAP"}, {}, ["stain-conflict"]),
        ({}, {"stains": (), "site": None}, ["organ-unknown", "stain-unknown"]),
    ],
)
def test_outside(specimen: dict[str, object], header: dict[str, object], expected: list[str]) -> None:
    ordered, found = dataclasses.replace(SPECIMEN, **specimen), dataclasses.replace(HEADER, **header)
    use = compare(ordered, found, CARD)
    assert [finding.code.code for finding in use.findings] == expected
    assert use.exploratory
    # A stain that is known and wrong may not be drawn on the slide; what is unknown may, marked.
    assert use.wrong_stain == bool({"stain-outside", "stain-conflict"} & set(expected))
    assert use.wrong_stain == any("no segmentation" in finding.text for finding in use.findings)


def test_stain_needs_all_its_substances() -> None:
    assert stain_name(HE) == "HE"
    assert stain_name(PAP) == "PAP"
    assert stain_name(HE[:1]) is None
    assert stain_name(()) is None


@pytest.mark.parametrize(
    ("ordered", "read", "expected"),
    [
        (None, None, ["specimen-unknown"]),
        (RESECTION, None, []),
        (None, RESECTION, []),
        (BIOPSY, None, ["specimen-outside"]),
        (RESECTION, BIOPSY, ["specimen-conflict"]),
    ],
)
def test_type_of_specimen_where_the_card_names_any(
    ordered: Code | None, read: Code | None, expected: list[str]
) -> None:
    card = dataclasses.replace(CARD, intended_use=dataclasses.replace(CARD.intended_use, specimen_types=(RESECTION,)))
    specimen = dataclasses.replace(SPECIMEN, type=ordered)
    header = dataclasses.replace(HEADER, specimen_type=read)
    assert [finding.code.code for finding in compare(specimen, header, card).findings] == expected
    assert compare(specimen, header, CARD).findings == ()
