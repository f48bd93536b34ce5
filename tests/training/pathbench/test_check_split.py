"""Split tables of others: leaks are found, hostile tables are answered in one sentence."""

import csv
import io
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.split import COLUMNS
from training.pathbench import __main__ as bench
from training.pathbench import check_split

pytestmark = pytest.mark.training

HEADER = "dataset,patient,case,slide,class,label,split\n"
CLEAN = HEADER + "A,P1,C1,S1/S2,x,0,train\nA,P2,C2,S3,y,1,val\nA,P3,C3,S4,x,0,test\nB,P4,C4,S5,x,0,H3\n"


def run(folder: Path, content: str | bytes, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status = bench.main(["check-split", str(path)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    "text",
    [
        CLEAN,
        "\ufeff" + CLEAN,
        CLEAN.replace("\n", "\r\n"),
        CLEAN.replace("patient,case", " Patient ,CASE"),
        CLEAN + "A,P1,C9,S9,x,0,Train\n\n",
        CLEAN.replace("A,P2,C2,S3,y,1,val", '"A","P2","C2","S\u20283","y, z",1,validation'),
    ],
    ids=["plain", "byte order mark", "Windows", "header in capitals", "same split in capitals", "quoted"],
)
def test_a_table_without_leaks_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, out, err = run(tmp_path, text, capsys)
    assert (status, err) == (0, "")
    assert "4 patients" in out
    assert "1 H3".casefold() in out


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("A,P1,C9,S9,x,0,test", "1 patient(s) stand in two splits: p1 in test and train."),
        ("A, p1 ,C9,S9,x,0,test", "1 patient(s) stand in two splits: p1 in test and train."),
        ("A,P9,C2,S9,x,0,train", "1 case(s) stand in two splits: c2 in train and validation."),
        ("A,P9,C9,S9/S2,x,0,test", "1 slide(s) stand in two splits: s2 in test and train."),
        ("A,P9,C9,S4.svs,x,0,train", "1 slide(s) stand in two splits: s4 in test and train."),
        ("B,P4,C9,S9,x,0,H5", "1 patient(s) stand in two splits: p4 in h3 and h5."),
    ],
)
def test_a_leak_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, sentence: str) -> None:
    assert run(tmp_path, CLEAN + row + "\n", capsys) == (1, "", sentence + "\n")


def test_slide_lists_that_share_patients_are_found_by_their_barcodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Public slide-level lists call every slide a case: only its barcode tells the patient."""
    rows = "".join(
        f"IDH1-TCGA,slide-{k},TCGA-02-{k % 3:04}-01Z-00-DX{k},TCGA-02-{k % 3:04}-01Z-00-DX{k}.svs,x,0,{part}\n"
        for k, part in enumerate(["train", "val", "test", "test", "val", "test"])
    )
    status, _, err = run(tmp_path, HEADER + rows, capsys)
    assert status == 1
    assert err == "1 TCGA patient(s) stand in two splits: tcga-02-0000 in test and train.\n"


def test_survival_folds_are_judged_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "dataset,patient,case,slide,status,time,Fold 0,Fold 1\n"
    rows = "A,P1,C1,S1,1,10,train,validation\nA,P2,C2,S2,0,20,validation,train\n"
    assert run(tmp_path, header + rows, capsys)[0] == 0
    status, _, err = run(tmp_path, header + rows + "A,P1,C1,S3,1,10,train,train\n", capsys)
    assert status == 1
    assert "both parts of fold 1: p1 in train and validation" in err
    assert "fold 0" not in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (HEADER, "has no rows"),
        (CLEAN.replace("patient,", "person,"), "lacks the column(s) patient"),
        (CLEAN.replace("case,slide", "a,b"), "lacks the column(s) case, slide"),
        (CLEAN.replace(",split", ",part"), "lacks the column(s) split"),
        (CLEAN.replace("class", "Patient "), "has the column patient twice"),
        (CLEAN + "A,P5,C5\n", "Row 5 of the table table.csv has 3 values for 7 columns"),
        (CLEAN + "A,P5,C5,S6,x,0,test,more\n", "Row 5 of the table table.csv has 8 values"),
        (CLEAN + "A, ,C5,S6,x,0,test\n", "Row 5 of the table table.csv names no patient"),
        (CLEAN + "A,P5,C5,/,x,0,test\n", "Row 5 of the table table.csv names no slide"),
        (CLEAN + "A,P5,C5,S6,x,0,\n", "Row 5 of the table table.csv has no split"),
        (CLEAN.encode("utf-16"), "not UTF-8"),
        (CLEAN + 'A,"P5,C5\n', "Row 5 of the table table.csv is not CSV"),
        (HEADER + "A," + "P" * 200_000 + ",C1,S1,x,0,train\n", "Row 1 of the table table.csv is not CSV"),
        (HEADER.replace(",", ";"), "lacks the column(s) patient, case, slide"),
    ],
    ids=lambda value: None if isinstance(value, str | bytes) and len(value) > 60 else str(value),
)
def test_a_hostile_table_is_answered_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, sentence: str
) -> None:
    status, out, err = run(tmp_path, content, capsys)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert str(tmp_path) not in err


def test_an_absent_table_a_folder_and_a_broken_parquet_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"no")
    for path in (tmp_path / "absent.csv", tmp_path, tmp_path / "broken.parquet", tmp_path / "absent.parquet"):
        assert check_split.main([str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"A,P{k // 3},C{k // 3},S{k},x,0,{('train', 'val', 'test')[k // 3 % 3]}\n" for k in range(100_000))
    start = time.process_time()
    status, out, _ = run(tmp_path, HEADER + rows, capsys)
    assert time.process_time() - start < 20
    assert status == 0
    assert "100000 rows, 33334 patients" in out


def test_of_many_leaks_a_few_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"A,P{k},C{k},{part[0]}{k},x,0,{part}\n" for k in range(40) for part in ("train", "external"))
    status, _, err = run(tmp_path, HEADER + rows, capsys)
    assert status == 1
    assert "40 patient(s)" in err
    assert "and 37 more" in err
    assert len(err) < 600


def test_parquet_is_read_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(CLEAN)))
    table = {name: [row[name] for row in rows] for name in rows[0]} | {"label": [0, 1, 0, None]}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    assert check_split.main([str(tmp_path / "table.parquet")]) == 0
    assert "4 rows" in capsys.readouterr().out
    table["patient"] = ["P1", "P1", "P3", "P4"]
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    assert check_split.main([str(tmp_path / "table.parquet")]) == 1


def test_our_own_splits_are_such_tables() -> None:
    assert {"dataset", "patient", "case", "slide", "class", "label", "split"} <= set(COLUMNS)
