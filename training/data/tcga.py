"""Survival and gene expression of TCGA patients: one row a patient, explicit months and events, the hospital as group.

The tables follow PORPOISE (Chen et al. 2022, doi 10.1016/j.ccell.2022.07.004; underlying data of TCGA's open tier) and
are of tier B: for evaluation, never in weights that ship. Their column `censorship` is 1 where the patient was alive at
the last visit, the opposite of an event; a table in which that was mixed up, or in which time is in days, is refused.
"""

import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.model_selection import StratifiedGroupKFold

from training.data.common import Source, data_root, manifest, read_source, read_table
from training.errors import DataMissing, SplitInvalid

CANCERS = (
    "BLCA",
    "BRCA",
    "COADREAD",
    "GBMLGG",
    "HNSC",
    "KIRC",
    "KIRP",
    "LIHC",
    "LUAD",
    "LUSC",
    "PAAD",
    "SKCM",
    "STAD",
)
"""Those with both tables."""

_CLINICAL = "tables/clinical_survival.csv"
_EVENT_SHARES = (0.05, 0.60)
_LONGEST_MONTHS = 480.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SurvivalTable:
    """cases_N: TCGA patient barcodes, rising; months_N: float64 to the event or last visit; event_N: bool, True = died;
    sites_N: str, the tissue source site (hospital), by which a split goes; rna_NG: float32 expression of `genes`."""

    cancer: str
    cases_N: np.ndarray
    months_N: np.ndarray
    event_N: np.ndarray
    sites_N: np.ndarray
    genes: tuple[str, ...]
    rna_NG: np.ndarray
    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.cases_N)


def load(cancer: str) -> SurvivalTable:
    """The patients of one cancer that have both tables. Raises DataMissing."""
    root = data_root()
    paths = (_CLINICAL, f"tables/rnaseq_{cancer.lower()}.parquet")
    absent = [path for path in paths if path not in manifest(root)]
    if absent:
        raise DataMissing(f"MANIFEST.csv does not name {absent[0]}. Name one of: {', '.join(CANCERS)}.")
    sources = tuple(manifest(root)[path] for path in paths)
    read_source(root, sources[0], "AB")  # its digest
    clinical: dict[str, tuple[float, bool, str]] = {}
    for row in read_table(root, _CLINICAL):
        if row["cancer"] == cancer:
            # Several slides of a patient repeat the patient's row.
            clinical.setdefault(row["case_id"], (float(row["survival_months"]), _event(row), row["tss"]))
    try:
        expression = pq.read_table(io.BytesIO(read_source(root, sources[1], "AB")))
    except pa.ArrowException:
        raise DataMissing(f"{sources[1].file} is not a Parquet file. Fetch the data again.") from None
    names = [str(name) for name in expression.column("case_id").to_pylist()]
    order = [place for place in np.argsort(names, kind="stable") if names[place] in clinical]
    genes = tuple(name for name in expression.column_names if name != "case_id")
    rna_NG = np.column_stack([expression.column(gene).to_numpy() for gene in genes])[order].astype(np.float32)
    cases = [names[place] for place in order]
    twice = [case for case, count in Counter(cases).items() if count > 1]
    if twice:
        raise DataMissing(f"{sources[1].file} has {len(twice)} patients twice. Fetch the data again.")
    months, events, sites = zip(*(clinical[case] for case in cases), strict=True)
    table = SurvivalTable(
        cancer=cancer,
        cases_N=np.array(cases),
        months_N=np.array(months, np.float64),
        event_N=np.array(events, bool),
        sites_N=np.array(sites),
        genes=genes,
        rna_NG=rna_NG,
        sources=sources,
    )
    require_plausible(table)
    return table


def require_plausible(table: SurvivalTable) -> None:
    """Raises DataMissing where events look like censorings, or months like days."""
    share, (least, most) = float(table.event_N.mean()), _EVENT_SHARES
    if not least <= share <= most:
        raise DataMissing(
            f"In the table of {table.cancer} {share:.0%} of the patients have an event, which is not plausible. "
            "Check that censorship 1 means censored."
        )
    longest = float(table.months_N.max())
    if longest > _LONGEST_MONTHS or float(table.months_N.min()) < 0:
        raise DataMissing(
            f"In the table of {table.cancer} a survival is {longest:.0f} months long, or negative. "
            "Check that its time is in months."
        )


def site_folds(table: SurvivalTable, folds: int, seed: int) -> np.ndarray:
    """(N,) int64: each patient's fold; all patients of a site are in one, events are balanced as well as sites allow
    (Howard et al. 2021, doi 10.1038/s41467-021-24698-1). Raises SplitInvalid where sites are too few."""
    if len(np.unique(table.sites_N)) < folds:
        raise SplitInvalid(f"The patients of {table.cancer} are of fewer than {folds} sites. Take fewer folds.")
    found_N = np.zeros(len(table), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, inside) in enumerate(splitter.split(table.months_N[:, None], table.event_N, table.sites_N)):
        found_N[inside] = fold
    for fold in range(folds):
        if not table.event_N[found_N == fold].any():
            raise SplitInvalid(f"Fold {fold} of {table.cancer} has no event. Take fewer folds.")
    return found_N


def _event(row: dict[str, str]) -> bool:
    value = float(row["censorship"])
    if value not in (0.0, 1.0):
        raise DataMissing(f"{_CLINICAL} has a censorship other than 0 and 1. Fetch the data again.")
    return value == 0.0
