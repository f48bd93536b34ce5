import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.order import Patient
from gateway.domain.report import Finding, FindingKind, Report
from gateway.reports import pdf as pdf_module
from gateway.reports import picture, thumbnail_jpeg, to_html, wording
from gateway.reports.pdf import to_pdf
from tests.reports.pdf_text import pages
from tests.reports.test_consistency import DIAGNOSIS

# What the page says of its own layout; the PDF lays the same values out otherwise.
ONLY_ON_THE_PAGE = {
    "Models, each with what traces it. Digests are sha256.",
    *("Model", "Version", "Engine, weights", "Recipe, data manifest", "Setting", "Value", "Slide", "Study", "Series"),
}


class Words(HTMLParser):
    """The text of a page, piece by piece as its tags part it."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._inside: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self._inside) and data.strip():
            self.pieces.append(" ".join(data.split()))


def squeezed(text: str) -> str:
    return "".join(text.split())


def finding(text: str, series: str | None = None) -> Finding:
    code = Code("uncertain-area", PRIVATE_SCHEME, "Uncertain area")
    return Finding(kind=FindingKind.CONFIDENCE, code=code, text=text, series=series)


def named(report: Report, **changes: str | None) -> Report:
    slide = report.slides[0]
    return replace(report, slides=(replace(slide, header=replace(slide.header, **changes)), *report.slides[1:]))


@pytest.fixture(scope="module")
def pictured(report: Report) -> tuple[Report, dict[str, bytes]]:
    series = report.slides[0].series
    pictures = {
        name: thumbnail_jpeg(np.full((60, 80, 3), shade, dtype=np.uint8))
        for name, shade in (("thumbnail-1.jpg", 90), ("tissue-map-1.jpg", 200))
    }
    records = tuple(picture(name.rsplit("-", 1)[0], name, data, series) for name, data in pictures.items())
    return replace(report, pictures=records), pictures


@pytest.fixture(scope="module")
def bare(report: Report) -> Report:
    """A report that knows next to nothing of its slide, with frames missing, no finding, and a changed setting."""
    slide = replace(report.slides[0], header=None, container=None, stain=None, site=None, grid=None)
    slide = replace(slide, tissue_area_mm2=None, frames_missing=3)
    order = replace(report.order, settings=(("tissue.min_share", 0.5),), patient=Patient(), accession=None)
    return replace(report, slides=(slide,), tissue=(), findings=(), order=order)


@pytest.fixture(scope="module")
def unread(report: Report) -> Report:
    """A report whose one slide was not read."""
    slide = replace(report.slides[0], read=False, reason="The series has no VOLUME image.", series="")
    return replace(report, slides=(slide,), tissue=(), findings=())


@pytest.mark.parametrize("name", ["report", "exploratory", "two_slides", "bare", "unread"])
def test_says_what_the_page_says(name: str, request: pytest.FixtureRequest) -> None:
    report: Report = request.getfixturevalue(name)
    said = "".join(pages(to_pdf(report, {})))
    for piece in Words(to_html(report, {})).pieces:
        assert piece in ONLY_ON_THE_PAGE or squeezed(piece) in said, piece
    for result in report.tissue:
        for tissue in result.classes:
            figures = (
                tissue.code.display,
                wording.area(tissue.area_mm2),
                wording.percent(tissue.share),
                wording.probability(tissue.mean_probability),
                str(tissue.tiles),
            )
            assert squeezed("".join(figures)) in said


def test_outside_the_intended_use_no_word_is_a_diagnosis(exploratory: Report, report: Report) -> None:
    assert DIAGNOSIS.search("".join(pages(to_pdf(exploratory, {})))) is None
    assert DIAGNOSIS.search("".join(pages(to_pdf(report, {}))))


def test_every_page_says_whose_it_is(exploratory: Report) -> None:
    report = replace(exploratory, findings=tuple(finding(f"Finding number {n}. " + "Text. " * 40) for n in range(40)))
    found = pages(to_pdf(report, {}))
    assert len(found) > 3
    head = "TESTP0001TissueclassificationPatientidP0001·AccessionACC0001Researchuse·Preliminary·Exploratory"
    for number, page in enumerate(found, 1):
        assert page.startswith(head)
        assert page.endswith(f"Page{number}of{len(found)}")
        assert squeezed(wording.RESEARCH_USE) in page


def test_what_stands_over_a_table_stays_on_its_page(report: Report) -> None:
    seen = set()
    for count in range(0, 40, 3):
        said = pages(to_pdf(replace(report, findings=tuple(finding(f"Number {n}.") for n in range(count))), {}))
        for heading, first in (("Shareofthetissueareathatwasread.", "Area,mm²"), ("Tilesthatstandfor", "x,µm")):
            ((number, page),) = ((number, page) for number, page in enumerate(said) if heading in page)
            assert first in page.split(heading)[1]
            seen.add(number)
    assert len(seen) > 1


def test_pictures_lie_inside_with_their_alternatives(pictured: tuple[Report, dict[str, bytes]]) -> None:
    report, pictures = pictured
    data = to_pdf(report, pictures)
    assert all(picture in data for picture in pictures.values())  # JPEG passes as it is
    assert b"/Alt(Thumbnail of the whole slide)" in data
    assert "Nopictureathand" not in "".join(pages(data))
    assert "".join(pages(to_pdf(report, {}))).count("Nopictureathand") == 2


def test_the_same_bytes_twice(pictured: tuple[Report, dict[str, bytes]]) -> None:
    assert to_pdf(*pictured) == to_pdf(*pictured)


def test_the_date_is_the_report_own(report: Report) -> None:
    data = to_pdf(replace(report, issued=datetime(2025, 2, 3, 4, 5, 6, tzinfo=UTC)), {})
    assert set(re.findall(rb"D:(\d{14})", data)) == {b"20250203040506"}
    assert "Issued2025-02-0304:05UTC" in pages(data)[0]


def test_is_an_archivable_tagged_document_with_its_fonts_inside(report: Report) -> None:
    data = to_pdf(report, {})
    assert b"<pdfaid:part>2</pdfaid:part><pdfaid:conformance>A</pdfaid:conformance>" in data
    assert b"<pdfuaid:part>1</pdfuaid:part>" in data
    assert b"/StructTreeRoot" in data
    descriptors = re.findall(rb"/Type/FontDescriptor.*?endobj", data, re.DOTALL)
    assert descriptors
    assert all(b"/FontFile" in descriptor for descriptor in descriptors)
    assert not re.search(rb"/JavaScript|/JS\b|/Launch|/URI\b|/EmbeddedFile", data)


def test_the_template_fetches_nothing() -> None:
    template = (Path(pdf_module.__file__).parent / "templates" / "report.typ").read_text()
    assert not re.search(r"#(import|include)|@preview|\b(read|plugin)\(", template)


@pytest.mark.parametrize(
    "name",
    ["Дмитриев^Пётр", "Παπαδόπουλος^Γιώργος", "Ağaoğlu^Şükrü", "Ní Bhriain^Órla", "Nguyễn^Thị Hồng", "Łoś^Żaneta"],
)
def test_names_of_europe_need_no_other_font(name: str, report: Report) -> None:
    said = pages(to_pdf(named(report, patient_name=name), {}))
    assert squeezed(name.replace("^", "")) in said[0]
    assert not any("□" in page for page in said)


@pytest.mark.parametrize("name", ["Yamada^Tarou=山田^太郎=やまだ^たろう", "𒐪𒐪^🜨", "홍^길동"])
def test_a_character_without_a_font_is_seen_to_be_missing(name: str, report: Report) -> None:
    said = pages(to_pdf(named(report, patient_name=name), {}))
    shown = squeezed(wording.person(name)) in said[0]
    assert shown != ("□standsforacharacter" in said[-1])
    assert shown or "□" in said[0]
    if name.startswith("Yamada"):
        assert "YamadaTarou" in said[0]


def test_only_what_no_font_shows_is_replaced(report: Report) -> None:
    report = replace(report, findings=(finding("0\u0d00 and 1\U0001246a"),))  # a mark on a digit, and a bare sign
    said = "".join(pages(to_pdf(report, {})))
    assert "0□and1□" in said
    assert said.count("□") == 3
    rest = Words(to_html(replace(report, findings=(finding("x"),)), {})).pieces
    assert [piece for piece in rest if squeezed(piece) not in said and piece not in ONLY_ON_THE_PAGE] == [
        "Whole case: x"
    ]


HOSTILE = (
    '#evil[$x$] *b* _i_ \\ "q" <a> @ref `raw` // comment ] } = head',
    '#import "@preview/x:1.0.0"\n= head\n/ a: b ~ -- https://x.test',
)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_value_is_ever_read_as_markup(report: Report, hostile: str) -> None:
    report = named(report, patient_name=hostile, patient_id=hostile, manufacturer=hostile)
    report = replace(report, findings=(finding(hostile),), statement=hostile)
    said = "".join(pages(to_pdf(report, {})))
    assert said.count(squeezed(hostile)) >= 4


def test_control_characters_and_long_words_do_no_harm(report: Report) -> None:
    long = "W" * 60
    report = named(
        report, patient_name=f"A\x07\x1b^{long}", patient_id=f"\u200b{long}", accession=long, specimen_id=long
    )
    report = replace(report, findings=(finding("x" * 2000),), analysis_id="a" * 64)
    said = pages(to_pdf(report, {}))
    assert f"A{long}" in said[0]
    assert "x" * 2000 in "".join(said)
    assert "\u200b" not in "".join(said)


@pytest.mark.parametrize("many", ["W" * 70_000, "a=" * 35_000, "b^" * 35_000, "Ж " * 35_000])
def test_values_longer_than_dicom_allows_are_cut(report: Report, many: str) -> None:
    """Nothing that a header says makes a report of a hundred pages, or one that takes minutes."""
    ordinary = to_pdf(report, {})
    names = ("patient_name", "patient_id", "patient_id_issuer", "patient_birth_date", "patient_sex", "accession")
    spoilt = named(report, **dict.fromkeys((*names, "specimen_id", "manufacturer", "model_name"), many))
    site = Code("1", "SCT", many)
    spoilt = replace(
        spoilt, slides=(replace(spoilt.slides[0], container=many, stain=many, site=site), *report.slides[1:])
    )
    began = time.process_time()
    document = to_pdf(spoilt, {})
    assert time.process_time() - began < 5
    assert len(document) < 2 * len(ordinary)
    said = pages(document)
    assert "…" in said[0]
    assert len("".join(said)) < len("".join(pages(ordinary))) + 15 * 200
    assert len(to_html(spoilt, {})) < len(to_html(report, {})) + 20 * 400


def test_values_as_long_as_dicom_allows_are_whole(report: Report) -> None:
    name = "=".join(letter * 64 for letter in "LIP")
    said = pages(to_pdf(named(report, patient_name=name, patient_id="N" * 64, accession="A" * 16), {}))[0]
    assert all(value in said for value in ("L" * 64, "I" * 64, "P" * 64, "N" * 64, "A" * 16))
    assert "L" * 64 in to_html(named(report, patient_name=name), {}).decode()


def test_right_to_left_names_are_shown(report: Report) -> None:
    said = pages(to_pdf(named(report, patient_name="כהן^דוד=محمد^علي"), {}))
    assert not any("□" in page for page in said)
    assert sorted(set("כהןדוד") & set(said[0])) == sorted(set("כהןדוד"))
