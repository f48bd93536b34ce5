"""Survival tables whose meaning was mixed up are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.data.made import Made
from training.data import tcga
from training.errors import DataMissing, SplitInvalid

pytestmark = pytest.mark.training

PATIENTS, SITES = 40, 8


def write(folder: Made, *, events: float = 0.4, days: float = 1.0, twice: bool = False, garbled: bool = False) -> None:
    """Two slides a patient in the clinical table; the expression table has a patient without survival, too."""
    cases = [f"TCGA-{k % SITES:02}-{k:04}" for k in range(PATIENTS)]
    rows = [
        {
            "case_id": case,
            "slide_id": f"{case}-{slide}",
            "cancer": "BLCA",
            "tss": case[5:7],
            "survival_months": str(days * (1 + place)),
            "censorship": str(float(place // SITES >= PATIENTS / SITES * events)),
        }
        for place, case in enumerate(cases)
        for slide in range(2)
    ]
    folder.table("tables/clinical_survival.csv", rows)
    names = [*reversed(cases), "TCGA-ZZ-0000"] + [cases[0]] * twice
    expression = pa.table(
        {"case_id": names, "GENE1": np.arange(len(names), dtype=np.float32), "GENE2": [0.5] * len(names)}
    )
    path = folder.root / "tables" / "rnaseq_blca.parquet"
    pq.write_table(expression, path)
    if garbled:
        path.write_bytes(b"no parquet")
    for file in ("tables/clinical_survival.csv", "tables/rnaseq_blca.parquet"):
        folder.vouch(file, tier="B")
    folder.finish()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    return Made(tmp_path)


def test_patients_are_joined_once_and_in_order(folder: Made) -> None:
    write(folder)
    table = tcga.load("BLCA")
    assert table.cases_N.tolist() == sorted(table.cases_N)
    assert len(table) == PATIENTS
    assert table.genes == ("GENE1", "GENE2")
    place = table.cases_N.tolist().index("TCGA-03-0003")
    assert table.months_N[place] == 4.0
    assert table.sites_N[place] == "03"
    assert table.event_N[place]
    assert table.rna_NG[place].tolist() == [PATIENTS - 1 - 3, 0.5]
    assert table.event_N.mean() == 0.4


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ({"events": 1.0}, "censorship 1 means censored"),
        ({"events": 0.0}, "0% of the patients"),
        ({"days": 30.4}, "time is in months"),
        ({"days": -1.0}, "time is in months"),
        ({"twice": True}, "1 patients twice"),
        ({"garbled": True}, "not a Parquet file"),
    ],
)
def test_an_implausible_table_is_refused(folder: Made, harm: dict[str, float], sentence: str) -> None:
    write(folder, **harm)
    with pytest.raises(DataMissing, match=sentence):
        tcga.load("BLCA")


def test_a_cancer_without_tables_is_named(folder: Made) -> None:
    write(folder)
    with pytest.raises(DataMissing, match=r"rnaseq_xxx\.parquet"):
        tcga.load("XXX")


def test_folds_keep_hospitals_together_and_refuse_too_few(folder: Made) -> None:
    write(folder)
    table = tcga.load("BLCA")
    folds_N = tcga.site_folds(table, 4, seed=1)
    assert sorted(set(folds_N)) == [0, 1, 2, 3]
    for site in np.unique(table.sites_N):
        assert len(set(folds_N[table.sites_N == site])) == 1
    with pytest.raises(SplitInvalid, match="fewer than 9 sites"):
        tcga.site_folds(table, 9, seed=1)
