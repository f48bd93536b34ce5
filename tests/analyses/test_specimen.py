"""Whether order and header declare a specimen of the cervix, and what they say of its preparation."""

from pathlib import Path

import pytest
from pydicom import Dataset

from gateway.analyses.specimen import Declared, declared
from gateway.domain.codes import Code
from gateway.domain.order import Specimen
from gateway.domain.slide import SlideHeader
from gateway.slides import Slide
from gateway.slides.header import slide_header
from gateway.slides.specimen import coded
from tests.conftest import data_path

CERVIX = Code("71252005", "SCT", "Cervix uteri structure")
BRAIN = Code("12738006", "SCT", "Brain")
SLIDE = Code("1179252003", "SCT", "Slide")
GROSS = Code("430861001", "SCT", "Gross specimen")
LIQUID = Code("430346005", "SCT", "Liquid based cytologic material")
TYPE = Code("371439000", "SCT", "Specimen type")
COLLECTION = Code("17636008", "SCT", "Specimen collection")
SAMPLING = Code("111704", "DCM", "Sampling Method")
EMBEDDING = Code("430863003", "SCT", "Embedding medium")
PUNCTURE = Code("277762005", "SCT", "Lumbar puncture")
PARAFFIN = Code("311731000", "SCT", "Paraffin wax")
BLOCK = Code("434472006", "SCT", "Block sectioning")
TISSUE = Code("119376003", "SCT", "Tissue specimen")
LOCAL = Code("ZYT-CX", "99LAB", "Portioabstrich")


def header(*specimens: Dataset) -> SlideHeader:
    dataset = Dataset()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.4"
    dataset.SpecimenDescriptionSequence = list(specimens)
    return slide_header(dataset)


def described(
    *, site: Code | None = None, kind: Code | None = SLIDE, steps: tuple[tuple[Code, Code], ...] = ()
) -> Dataset:
    specimen = Dataset()
    if site is not None:
        specimen.PrimaryAnatomicStructureSequence = [coded(site)]
    if kind is not None:
        specimen.SpecimenTypeCodeSequence = [coded(kind)]
    specimen.SpecimenPreparationSequence = [_step(name, value) for name, value in steps]
    return specimen


def _step(name: Code, value: Code) -> Dataset:
    item, step = Dataset(), Dataset()
    item.ValueType, item.ConceptNameCodeSequence, item.ConceptCodeSequence = "CODE", [coded(name)], [coded(value)]
    step.SpecimenPreparationStepContentItemSequence = [item]
    return step


def ordered(kind: Code | None = None, site: Code | None = None) -> Specimen:
    return Specimen(slides=(), type=kind, site=site)


def keys(found: Declared) -> list[str]:
    return [finding.code.code for finding in found.findings]


@pytest.mark.parametrize(
    ("specimen", "slide"),
    [
        (ordered(site=CERVIX), described(steps=((TYPE, GROSS),))),
        (ordered(Code("276446009", "SCT", "Cervical smear sample")), described()),
        (ordered(), described(site=CERVIX)),
        (ordered(), described(site=Code("T-83200", "SRT", "Cervix"))),
        (ordered(), described(site=Code("36973007", "SCT", "Endocervical structure"))),
        (ordered(), described(kind=Code("119395005", "SCT", "Specimen from uterine cervix"))),
        (ordered(), described(steps=((TYPE, Code("110949001", "SCT", "Cervix cytologic material")), (TYPE, SLIDE)))),
        (ordered(), described(steps=((COLLECTION, Code("440623000", "SCT", "Cervical smear")),))),
        (ordered(LOCAL), described()),
    ],
)
def test_one_code_of_the_cervix_suffices(specimen: Specimen, slide: Dataset) -> None:
    assert declared(specimen, header(slide), {"99LAB|ZYT-CX": "276446009"}) == Declared(True, ())


@pytest.mark.parametrize(
    ("specimen", "slides", "said"),
    [
        (ordered(), [described(steps=((TYPE, GROSS),))], "Neither the order"),
        (ordered(), [], "Neither the order"),
        (ordered(site=CERVIX), [described(site=BRAIN)], "'Brain'"),
        (ordered(site=BRAIN), [described(site=CERVIX)], "'Brain'"),
        (ordered(), [described(site=CERVIX), described(site=BRAIN)], "'Brain'"),
        (ordered(site=CERVIX), [described(steps=((TYPE, Code("258450006", "SCT", "CSF sample")),))], "'CSF sample'"),
        (ordered(LOCAL), [described()], "99LAB|ZYT-CX"),
        (ordered(site=CERVIX), [described(steps=((COLLECTION, PUNCTURE),))], "'Lumbar puncture'"),
        (ordered(site=CERVIX), [described(steps=((EMBEDDING, PARAFFIN),))], "'Paraffin wax'"),
        (ordered(site=CERVIX), [described(steps=((EMBEDDING, Code("F-616D8", "SRT", "Wax")),))], "'Wax'"),
        (ordered(site=CERVIX), [described(kind=Code("430856003", "SCT", "Tissue section"))], "'Tissue section'"),
        (ordered(site=CERVIX), [described(steps=((SAMPLING, BLOCK),))], "'Block sectioning'"),
    ],
)
def test_what_is_not_declared_or_contradicted(specimen: Specimen, slides: list[Dataset], said: str) -> None:
    found = declared(specimen, header(*slides), {})
    assert not found.cervical
    assert keys(found) == ["specimen-not-cervical"]
    assert said in found.findings[0].text


@pytest.mark.parametrize(
    ("specimen", "slide"),
    [
        (ordered(LIQUID, CERVIX), described()),
        (ordered(site=CERVIX), described(steps=((TYPE, LIQUID),))),
        (ordered(), described(steps=((COLLECTION, Code("417036008", "SCT", "Liquid based cervical cytology")),))),
    ],
)
def test_a_liquid_based_preparation_is_read_and_told(specimen: Specimen, slide: Dataset) -> None:
    found = declared(specimen, header(slide), {})
    assert found.cervical
    assert keys(found) == ["preparation-not-validated"]


@pytest.mark.parametrize(
    ("specimen", "slide"),
    [
        (ordered(LOCAL, CERVIX), described()),
        (ordered(site=CERVIX), described(kind=LOCAL)),
        (ordered(), described(site=CERVIX, steps=((TYPE, LOCAL),))),
    ],
)
def test_a_kind_that_nobody_has_mapped_is_told(specimen: Specimen, slide: Dataset) -> None:
    found = declared(specimen, header(slide), {})
    assert found.cervical
    assert keys(found) == ["specimen-not-understood"]
    assert "99LAB|ZYT-CX" in found.findings[0].text


def test_tissue_as_headers_have_it_by_default_contradicts_nothing() -> None:
    found = declared(ordered(site=CERVIX), header(described(kind=TISSUE)), {})
    assert found.cervical
    assert keys(found) == ["preparation-not-validated"]


def test_cerebrospinal_fluid_is_not_cervical_whatever_the_order_says() -> None:
    with Slide.open(sorted(data_path("slides", "csf_breast_pap").glob("*.dcm"))) as slide:
        found = declared(ordered(site=CERVIX), slide.header, {})
    assert not found.cervical
    assert "'Paraffin wax'" in found.findings[0].text


def test_an_excision_contradicts_nothing() -> None:
    excised = described(steps=((COLLECTION, Code("65801008", "SCT", "Excision")),))
    assert declared(ordered(site=CERVIX), header(excised), {}).cervical


def test_papanicolaou_stained_cerebrospinal_fluid_is_not_cervical() -> None:
    with Slide.open(sorted(data_path("slides", "csf_breast_pap").glob("*.dcm"))) as slide:
        found = declared(ordered(), slide.header, {})
    assert not found.cervical
    assert keys(found)[0] == "specimen-not-cervical"


def test_a_real_he_slide_is_not_cervical(cmu_slide: Path) -> None:
    with Slide.open(sorted(cmu_slide.glob("*.dcm"))) as slide:
        assert not declared(ordered(), slide.header, {}).cervical
