"""Bethesda's classes: their order, their codes, and the one way between a class's number and a detector's column."""

import pytest

from gateway.domain.bethesda import ABNORMAL, AGC, CLASSES, NAMES, class_of, column_of


def test_the_order_is_fixed_and_the_codes_are_those_of_the_value_sets() -> None:
    assert NAMES == ("NILM", "ASC-US", "LSIL", "ASC-H", "HSIL", "SCC", "AGC")
    assert [entry.severity for entry in CLASSES] == [0, 1, 2, 3, 4, 5, 4]
    assert [entry.branch for entry in CLASSES] == [None, *["squamous"] * 5, "glandular"]
    assert [entry.code.code for entry in CLASSES] == [
        "373887005", "441087007", "62051000119105", "441088002", "62061000119107", "1162767002", "441219009",
    ]  # fmt: skip


def test_no_abnormal_class_is_without_a_column() -> None:
    assert [column_of(number) for number in range(1, 7)] == [0, 1, 2, 3, 4, 5]
    assert all(class_of(column_of(number)) == number for number in range(1, 7))
    assert ABNORMAL[column_of(AGC)] == "AGC"
    for number in (-1, 0, 7):
        with pytest.raises(ValueError, match="no abnormal class"):
            column_of(number)
    for column in (-1, 6):
        with pytest.raises(ValueError, match="no column"):
            class_of(column)
