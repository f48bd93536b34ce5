"""Reference standards as spreadsheets write them: taken whole, or refused with what to do and nothing joined."""

import codecs
from pathlib import Path

import pytest

from gateway.analyses.study_journal import Journal, Kind
from gateway.analyses.study_reference import Row, rows_of
from gateway.analyses.study_register import Register
from gateway.operations.errors import InvalidInput
from tests.analyses.study_support import Cohort
from tests.support.disk import largest_file

CENTRES = {"A1": "north", "A2": None}
ROWS = (Row("A1", "NILM", None, "früh; unsicher"), Row("A2", "HSIL", None, "CIN 3, Rand"))
GOOD = "accession,category\nA1,NILM\nA2,HSIL\n"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("between", [",", ";"])
@pytest.mark.parametrize("quote", ["", '"'], ids=["names as they are", "names in quotes"])
def test_commas_semicolons_and_any_line_end_say_the_same(mark: bytes, end: str, between: str, quote: str) -> None:
    heads = between.join(f"{quote}{name}{quote}" for name in ("accession", "category", "histology"))
    lines = [heads, between.join(("A2", "HSIL", '"CIN 3, Rand"')), between.join(("A1", "NILM", '"früh; unsicher"'))]
    assert rows_of(mark + end.join((*lines, "")).encode(), CENTRES) == ROWS


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"accession;category\nA1,NILM\n", "Row 2 of the reference standard has 1 values, not 2"),
        (b"accession,category\nA1;NILM\n", "Row 2 of the reference standard has 1 values, not 2"),
        (b"accession;category\nA1;NILM;\n", "Row 2 of the reference standard has 3 values, not 2"),
        (b"accession;category,histology\nA1;NILM,\n", "must name the columns accession and category"),
        (b"accession\tcategory\nA1\tNILM\n", "must name the columns accession and category"),
        (codecs.BOM_UTF8, "it has: nothing"),
        (b"accession;category\n;\n \n", "has no row"),
    ],
)
def test_what_is_parted_otherwise_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        rows_of(data, CENTRES)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ("accession,category,histology\nA1,NILM,\nA2,HSIL,früh\n".encode("cp1252"), "line 3 has the byte 0xFC"),
        ("accession;category;histology\nA1;NILM;–\n".encode("cp1252"), "line 2 has the byte 0x96"),
        ("accession,category\nA1,NILM\n".encode("utf-16"), "line 1 has the byte 0xFF"),
        ("accession,category\nA1,NILM\nÄ2,".encode()[:-3], "line 3 has the byte 0xC3"),
    ],
    ids=["Latin-1", "Windows-1252", "UTF-16", "cut in the middle of a letter"],
)
def test_another_encoding_is_named_with_its_line_and_what_to_do(data: bytes, where: str) -> None:
    with pytest.raises(InvalidInput, match=rf"is not in UTF-8 \({where}\)\. Save it as CSV UTF-8"):
        rows_of(data, CENTRES)


@pytest.fixture
def enrolled(cohort: Cohort) -> Cohort:
    """A study of two cases that wait for their reference standard."""
    cohort.new()
    cohort.does("enrol", "north", "A1", "A2", "--centre", "east")
    return cohort


def journal(cohort: Cohort) -> Path:
    return cohort.folder() / "journal.jsonl"


def joined(cohort: Cohort) -> list[tuple[Row, ...]]:
    return [each.rows for each in Register.of(Journal(journal(cohort)).read()).joined]


def written(folder: Path, data: bytes | str) -> str:
    path = folder / "reference.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("accession,category\nA1,NILM\nA2,HSIL\nA1,NILM\n", "row 4: A1 stands twice"),
        ("accession,category\nA1,NILM\nA9,HSIL\n", "row 3: A9 does not take part"),
        ("accession,category\nA1,NILM\nA2,CIN 3\n", "A2 has the unknown category 'CIN 3'"),
        ("accession,histology\nA1,CIN 3\n", "must name the columns accession and category"),
        ("accession,category\nA1,NILM\nA2,HSIL\n\xe4".encode("latin-1"), "Save it as CSV UTF-8"),
        ('accession,category\nA1,NILM\n"A2,HSIL\n', "is no CSV file"),
        (b"", "it has: nothing"),
        (bytes(16 * 2**20 + 1), "larger than 16 MiB"),
    ],
    ids=["doubled", "unknown", "category", "column", "Latin-1", "quote", "empty", "large"],
)
def test_a_file_that_is_refused_joins_nothing_and_leaves_the_study_open(
    enrolled: Cohort, tmp_path: Path, data: bytes | str, sentence: str
) -> None:
    before = journal(enrolled).read_bytes()
    assert sentence in enrolled.refuses("join", "north", written(tmp_path, data))
    assert journal(enrolled).read_bytes() == before
    assert "no reference standard yet" in enrolled.refuses("report", "north")
    enrolled.does("enrol", "north", "A3", "--centre", "east")
    said = enrolled.does("join", "north", written(tmp_path, GOOD.replace(",", ";")))
    assert "2 rows" in said
    assert "without a reference: 1" in said
    assert joined(enrolled) == [(Row("A1", "NILM"), Row("A2", "HSIL"))]


@pytest.mark.parametrize("what", ["a folder", "nothing"])
def test_a_file_that_cannot_be_read_is_named(enrolled: Cohort, tmp_path: Path, what: str) -> None:
    path = tmp_path if what == "a folder" else tmp_path / "none.csv"
    assert "cannot be read" in enrolled.refuses("join", "north", str(path))
    assert joined(enrolled) == []


@pytest.mark.parametrize("room", [0, 100], ids=["for nothing", "for a part of the line"])
def test_a_disk_that_is_full_as_the_line_is_written_joins_nothing(enrolled: Cohort, tmp_path: Path, room: int) -> None:
    """The operating system itself cuts the write off, as it does where no block is left."""
    before, file = journal(enrolled).read_bytes(), written(tmp_path, GOOD)
    entries = Journal(journal(enrolled)).read()
    data = {"file_sha256": "0" * 64, "rows": [["A1", "NILM", None, None]], "reason": None}
    with largest_file(len(before) + room), pytest.raises(OSError, match=r"File too large|No space left"):
        Journal(journal(enrolled)).append(entries, Kind.JOINED, "device:tester", data)
    assert journal(enrolled).read_bytes() == before
    enrolled.does("join", "north", file)
    assert joined(enrolled) == [(Row("A1", "NILM"), Row("A2", "HSIL"))]


def test_a_correction_that_is_refused_leaves_the_version_before(enrolled: Cohort, tmp_path: Path) -> None:
    enrolled.does("join", "north", written(tmp_path, GOOD))
    before = journal(enrolled).read_bytes()
    for data in ("accession,category\nA1,HSIL\nA1,HSIL\n", b"accession,category\nA1,NILM\nA2,H\xe4\n"):
        enrolled.refuses("join", "north", written(tmp_path, data), "--supersede", "read again")
    assert journal(enrolled).read_bytes() == before
    enrolled.does("join", "north", written(tmp_path, GOOD.replace("NILM", "LSIL")), "--supersede", "read again")
    assert [rows[0].category for rows in joined(enrolled)] == ["NILM", "LSIL"]
