"""The parts of a study: its statistics, its journal's chain, its reference standard."""

from pathlib import Path

import pytest

from gateway.analyses.study_journal import Journal, Kind, StudyDamaged
from gateway.analyses.study_reference import Row, rows_of
from gateway.analyses.study_statistics import area, share
from gateway.operations.errors import InvalidInput

CENTRES = {"A1": "north", "A2": "north", "A3": None}


def test_a_share_has_wilsons_interval() -> None:
    # By hand: z² = 3.8415; middle (0.5 + 0.9604) / 2.9207 = 0.5, half 1.96 / 2.9207 · sqrt(0.125 + 0.2401) = 0.4055.
    half = share(1, 2)
    assert (half.low, half.high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert (share(81, 263).low, share(81, 263).high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    none = share(0, 20)
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert share(0, 0).value is None


def test_an_area_counts_pairs_and_ties_half() -> None:
    found = area([0.9, 0.4, 0.4, 0.1], [True, True, False, False], list("abcd"), resamples=200, seed=1)
    assert found.value == pytest.approx(3.5 / 4)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    again = area([0.9, 0.4, 0.4, 0.1], [True, True, False, False], list("abcd"), resamples=200, seed=1)
    assert again == found


def test_patients_are_drawn_whole() -> None:
    """Ten copies of each case of one patient say no more than one does."""
    scores, positive = [0.9, 0.2, 0.4, 0.1], [True, True, False, False]
    once = area(scores, positive, list("abcd"), resamples=500, seed=1)
    many = area(scores * 10, positive * 10, list("abcd") * 10, resamples=500, seed=1)
    alone = area(scores * 10, positive * 10, [str(number) for number in range(40)], resamples=500, seed=1)
    assert (many.low, many.high) == (once.low, once.high)
    assert alone.low is not None
    assert many.low is not None
    assert alone.low > many.low


def test_an_area_needs_both_sides_and_an_interval_two_patients_of_each() -> None:
    assert area([0.9], [True], ["a"], resamples=10, seed=1).value is None
    few = area([0.9, 0.1, 0.2], [True, False, False], list("abc"), resamples=10, seed=1)
    assert (few.value, few.low) == (1.0, None)


def test_a_line_that_was_changed_removed_or_put_there_breaks_the_chain(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(3):
        journal.append(journal.read(), Kind.ENROLLED, "device:a", {"accession": f"A{number}\u2028ä"})
    assert [entry.data["accession"] for entry in journal.read()] == [f"A{number}\u2028ä" for number in range(3)]
    path = tmp_path / "journal.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for lines in (
        (first.replace(b"A0", b"B0"), second, third),
        (first, third),
        (second, third),
        (first, second, second, third),
        (first, b"{}\n", third),
        (first, second.replace(b'"seq":2', b'"seq": 2'), third),
    ):
        path.write_bytes(b"".join(lines))
        with pytest.raises(StudyDamaged, match="line"):
            journal.read()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyDamaged, match="not a regular file"):
        journal.read()


def test_half_a_line_is_what_a_kill_left_and_gives_way_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append((), Kind.CREATED, "device:a", {})
    path.write_bytes(path.read_bytes() + b'{"seq":2,"ti')
    assert len(journal.read()) == 1
    journal.append(journal.read(), Kind.ENROLLED, "device:a", {})
    assert [entry.seq for entry in journal.read()] == [1, 2]


def test_a_reference_standard_is_read() -> None:
    data = "\ufeffcategory,accession,histology\r\nHSIL, A2 ,CIN 3\r\n\r\nNILM,A1,\r\n".encode()
    assert rows_of(data, CENTRES) == (Row("A1", "NILM"), Row("A2", "HSIL", None, "CIN 3"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("accession,category\nA9,NILM\n", "row 2: A9 does not take part"),
        ("accession,category\n\nA1,NILM\nA1,NILM\n", "row 4: A1 stands twice"),
        ("accession,category\nA1,NILM\nA1,HSIL\n", "A1 is NILM above: the rows contradict each other"),
        ("accession,category\nA1,hsil\n", "A1 has the unknown category 'hsil'"),
        ("accession,category,centre\nA1,NILM,south\n", "A1 is of south, but was enrolled at north"),
        ("accession\nA1\n", "must name the columns accession and category"),
        ("accession,category,patient\nA1,NILM,P\n", "must name the columns"),
        ("accession,category,category\nA1,NILM,HSIL\n", "must name the columns"),
        ("accession,category\nA1\n", "Row 2 of the reference standard has 1 values, not 2"),
        ("accession,category\n", "has no row"),
        ("", "it has: nothing"),
        ("accession,category\n,NILM\n", "no accession does not take part"),
        ('accession,category\n"A1,NILM\n', "no CSV file"),
    ],
)
def test_a_reference_standard_is_refused_whole(text: str, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence.replace("(", r"\(")):
        rows_of(text.encode(), CENTRES)
