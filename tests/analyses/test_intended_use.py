"""Organ and stain of order and header against the card; unknown is outside, never guessed."""

import dataclasses

import pytest

from gateway.analyses.identity import check_identity, check_one_patient
from gateway.analyses.intended_use import compare
from gateway.domain.codes import Code
from gateway.domain.model import IntendedUse, ModelCard, ModelVersion
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.slide import SlideHeader
from gateway.domain.tables import stain_name
from gateway.operations.errors import IdentityMismatch

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
    ("order", "specimen", "header"),
    [
        ({"patient": Patient("A")}, {}, {"patient_id": "B"}),
        ({"patient": Patient("A", "X")}, {}, {"patient_id": "A", "patient_id_issuer": "Y"}),
        ({"accession": "1"}, {}, {"accession": "2"}),
        ({}, {"container": "1"}, {"container_id": "2"}),
    ],
)
def test_another_case_is_refused(
    order: dict[str, object], specimen: dict[str, object], header: dict[str, object]
) -> None:
    ordered = dataclasses.replace(SPECIMEN, **specimen)
    with pytest.raises(IdentityMismatch) as caught:
        check_identity(Order("p", (ordered,), **order), ordered, dataclasses.replace(HEADER, **header))
    assert not {"A", "B", "X", "Y"} & set(caught.value.detail.split())


def test_same_or_one_sided_identifiers_pass() -> None:
    header = dataclasses.replace(HEADER, patient_id="A ", accession="1", container_id=None)
    ordered = dataclasses.replace(SPECIMEN, container="C")
    check_identity(Order("p", (ordered,), patient=Patient("A")), ordered, header)


def test_slides_of_one_case_belong_to_one_patient() -> None:
    one = dataclasses.replace(HEADER, patient_id="A")
    check_one_patient([one, dataclasses.replace(one, patient_id="A "), dataclasses.replace(one, patient_id=None)])
    with pytest.raises(IdentityMismatch):
        check_one_patient([one, dataclasses.replace(one, patient_id="B")])


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
