import base64
import html
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.report import Finding, FindingKind, Report
from gateway.reports import picture, thumbnail_jpeg, to_html

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, and whether the tags nest properly."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def attributes(self, name: str) -> Iterator[str]:
        return (attributes[name] or "" for _, attributes in self.tags if name in attributes)


@pytest.fixture(scope="module")
def pictured(report: Report) -> tuple[Report, dict[str, bytes]]:
    series = report.slides[0].series
    image = thumbnail_jpeg(np.full((60, 80, 3), 200, dtype=np.uint8))
    pictures = {"thumbnail-1.jpg": image}
    return replace(report, pictures=(picture("thumbnail", "thumbnail-1.jpg", image, series),)), pictures


def test_stands_alone(pictured: tuple[Report, dict[str, bytes]]) -> None:
    report, pictures = pictured
    page = Page(to_html(report, pictures))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "href"]
    sources = list(page.attributes("src"))
    assert [source.split(",")[0] for source in sources] == ["data:image/jpeg;base64"]
    assert base64.b64decode(sources[0].split(",")[1]) == pictures["thumbnail-1.jpg"]
    text = to_html(report, pictures).decode()
    assert not re.search(r"https?://|url\(|@import", text)


def test_is_accessible(pictured: tuple[Report, dict[str, bytes]]) -> None:
    page = Page(to_html(*pictured))
    tags = dict(page.tags)
    assert tags["html"]["lang"] == "en"
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert "@media print" in to_html(*pictured).decode()


def test_says_what_the_reader_must_know_first(report: Report, exploratory: Report) -> None:
    words = Page(to_html(report, {})).words
    order = [
        words.index(part)
        for part in (
            "Research use only, not a medical device.",
            "TEST P0001",
            report.findings[0].text,
            "Tissue map",
            "Mean probability",
            "onnx fp32",
            report.models[0].engine_sha256,
        )
    ]
    assert order == sorted(order)
    assert "Preliminary and unsigned" in words
    assert "Exploratory" not in words
    outside = Page(to_html(exploratory, {})).words
    assert "Exploratory result." in outside
    assert "this slide lies outside the intended use" in outside


def test_names_every_slide_read_or_not(two_slides: Report) -> None:
    words = Page(to_html(two_slides, {})).words
    assert "Slide 2 (container ACC0001-A2-1)" in words
    assert "Slide 3: The series has no VOLUME image." in words
    assert words.count("No picture at hand") == 4


@pytest.mark.parametrize("series", ["2.25.77", ""])
def test_an_unread_slide_is_told_once(series: str, two_slides: Report) -> None:
    slides = (*two_slides.slides[:2], replace(two_slides.slides[2], series=series))
    finding = Finding(
        kind=FindingKind.NOT_READ,
        code=Code("no-volume-image", PRIVATE_SCHEME, "No VOLUME image"),
        text="The series has no VOLUME image.",
        series=series or None,
    )
    words = Page(to_html(replace(two_slides, slides=slides, findings=(finding,)), {})).words
    assert words.count("The series has no VOLUME image.") == 1


def test_hostile_text_stays_text(report: Report) -> None:
    attack = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"
    slide = report.slides[0]
    assert slide.header is not None
    header = replace(slide.header, patient_name=attack, patient_id=attack, patient_id_issuer=attack, accession=attack)
    tissue = report.tissue[0]
    hostile = replace(
        report,
        statement=attack,
        slides=(replace(slide, header=header, container=attack, stain=attack, site=Code("x", "y", attack)),),
        findings=(replace(report.findings[0], text=attack),),
        order=replace(report.order, settings=((attack, attack),)),
        models=tuple(replace(model, name=attack, recipe=attack) for model in report.models),
        tissue=(
            replace(
                tissue,
                operating_point=attack,
                classes=tuple(replace(c, code=replace(c.code, display=attack)) for c in tissue.classes),
            ),
        ),
    )
    data = to_html(hostile, {})
    page = Page(data)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "img" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert attack in html.unescape(data.decode())


def test_long_and_foreign_names(report: Report) -> None:
    slide = report.slides[0]
    assert slide.header is not None
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    header = replace(slide.header, patient_name=name, patient_id="9" * 5000, patient_birth_date="unknown")
    data = to_html(replace(report, slides=(replace(slide, header=header),)), {}).decode()
    words = Page(data.encode()).words
    assert "Yamada Tarou · 山田 太郎 · やまだ たろう" in words
    assert f'title="{name}"' in data
    assert "9" * 63 + "…" in words
    assert "9" * 64 not in data
    assert "unknown" in words


def test_a_slide_without_result_or_header(report: Report) -> None:
    slide = replace(report.slides[0], header=None, grid=None, tissue_area_mm2=None, frames_missing=3)
    words = Page(to_html(replace(report, slides=(slide,), tissue=()), {})).words
    assert "This slide was read; it has no result." in words
    assert "3 frames were missing" in words
    assert "P0001" in words
