"""What became of every pair of image and prompt: a table, and the figures that are made of it.

Dice is a pair's own; it is then averaged over pairs of a set or of a prompt. The bootstrap's unit is the group
(patient, field or near-duplicates), so that all pairs of a resampled group travel together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

import numpy as np

from gateway.domain.prompts import UNSPECIFIED
from training.pathbench.statistics import Units, holm, wilcoxon
from training.statistics import Figure, RunsScore, StatisticsInvalid, bootstrap, interval, macro_auroc, picks

RESAMPLES, SEED = 1000, 2026
FEWEST_GROUPS = 3
"""Below that a figure has no interval, and a prompt no say in a mean over prompts: resamples of two say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One prompt on one image. `present` is None where it is not known, or too small to be either. Dice values are NaN
    where they are not defined (the object is absent) or not asked."""

    set: str
    external: bool
    part: str
    group: str
    image: str
    prompt: str
    level: str
    own: bool
    """The prompt names the image's own region (or the image has none), and not only `unspecified`."""
    organ: str = UNSPECIFIED
    stain: str = "HE"
    """Of the image."""
    present: bool | None
    impossible: bool = False
    """The object cannot be in the image's organ, and so is absent without an outline to tell it."""
    presence: float = np.nan
    """Logit of presence, before the temperature."""
    area: float = np.nan
    """Share of the image in the predicted mask, before the presence rule."""
    inside: float = np.nan
    """`mask_statistics` of the predicted mask: probability, red, green, blue."""
    red: float = np.nan
    green: float = np.nan
    blue: float = np.nan
    dice: float = np.nan
    """Of the mask as it is drawn, whatever is said of presence; so are all that are asked otherwise."""
    served: float = np.nan
    """Dice of the mask as it is served: where the presence rule hides it, 0."""
    recall: float = np.nan
    """Share of the truth's pixels that the served mask holds."""
    outline: float = np.nan
    """Which of the image's different outlines the truth is: equal for prompts that have the same one."""
    no_level: float = np.nan
    no_region: float = np.nan
    no_constant: float = np.nan
    common_scale: float = np.nan
    common_scale_no_level: float = np.nan
    wrong_level: float = np.nan
    wrong_object: float = np.nan
    permuted: float = np.nan
    largest_object: float = np.nan
    """Dice of marking, whatever is asked, the largest of the image's objects (told by the truth)."""
    best_query: float = np.nan
    otsu: float = np.nan
    box_union: float = np.nan
    box_instances: float = np.nan
    whole_image: float = np.nan
    pixels: float = np.nan
    """Of the image, at its level's scale."""
    count: float = np.nan
    instance_ratio: float = np.nan
    dispersion_px: float = np.nan
    irregularity_mask: float = np.nan
    irregularity_instance: float = np.nan


_TEXTS = ("set", "part", "group", "image", "prompt", "level", "organ", "stain")


class Table:
    """Pairs by column: `table["dice"]` is (N,) float64, texts are (N,) str; `present` is 1, 0 or NaN."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = {
            field.name: np.array(columns[field.name], str if field.name in _TEXTS else np.float64)
            for field in fields(Pair)
        }

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Table":
        rows = [asdict(pair) for pair in pairs]
        return cls({field.name: [row[field.name] for row in rows] for field in fields(Pair)})

    def __len__(self) -> int:
        return len(self["set"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def groups(self) -> np.ndarray:
        """(N,) str. Groups of different sets are different, whatever their names."""
        return np.char.add(np.char.add(self["set"], "/"), self["group"])

    def images(self) -> int:
        """How many different ones."""
        return len(np.unique(np.char.add(np.char.add(self["set"], "/"), self["image"])))

    def shares(self) -> np.ndarray:
        """(N,): 1 / k for pairs of one image that share their outline with k - 1 others: together they count once. So a
        polyp, which is outlined by its glands, and those glands."""
        keys_N = np.char.add(np.char.add(self["set"], "/"), np.char.add(self["image"], "/"))
        keys_N = np.char.add(keys_N, np.char.add(self["own"].astype(str), self["outline"].astype(str)))
        _, number_N, counts_K = np.unique(keys_N, return_inverse=True, return_counts=True)
        return np.where(np.isnan(self["outline"]), 1.0, 1.0 / counts_K[number_N])

    @classmethod
    def joined(cls, *tables: "Table") -> "Table":
        return cls({field.name: np.concatenate([table[field.name] for table in tables]) for field in fields(Pair)})

    def where(self, kept_N: np.ndarray) -> "Table":
        return Table({name: values[kept_N] for name, values in self._columns.items()})

    def replaced(self, name: str, values_N: np.ndarray) -> "Table":
        """The same pairs with other values in one column."""
        return Table({**self._columns, name: values_N})

    def record(self) -> dict[str, list[Any]]:
        """By column for JSON, numbers to 4 decimals, None where there is none; columns without a value are left out."""
        found: dict[str, list[Any]] = {}
        for name, values in self._columns.items():
            if name in _TEXTS:
                found[name] = values.tolist()
            elif not np.isnan(values).all():
                found[name] = [None if np.isnan(value) else round(float(value), 4) for value in values]
        return found

    @classmethod
    def read(cls, record: Mapping[str, Sequence[Any]]) -> "Table":
        count = len(record["set"])
        return cls({field.name: record.get(field.name, [np.nan] * count) for field in fields(Pair)})


def mean(values_N: np.ndarray, groups_N: np.ndarray, shares_N: np.ndarray | None = None) -> dict[str, Any]:
    """The mean of the defined values, its interval over resamples of groups (the value itself thrice below three
    groups), and how many pairs and groups it rests on. `shares_N` are weights (`Table.shares`). {} for no value."""
    kept_N = ~np.isnan(values_N)
    values, groups = values_N[kept_N], groups_N[kept_N]
    count = len(np.unique(groups))
    if not count:
        return {}
    shares = np.ones(len(values)) if shares_N is None else shares_N[kept_N]
    value = float((values * shares).sum() / shares.sum())
    found = Figure(value, value, value)
    if count >= FEWEST_GROUPS:
        # What `bootstrap` of the mean draws and finds, from the groups' sums: two orders of magnitude sooner.
        number_N = np.unique(groups, return_inverse=True)[1]
        sums_G, sizes_G = np.bincount(number_N, values * shares), np.bincount(number_N, shares)
        picked_BG = np.array(list(islice(picks(count, SEED), RESAMPLES)))
        found = interval(value, sums_G[picked_BG].sum(1) / sizes_G[picked_BG].sum(1))
    return rounded(found) | {"pairs": len(values), "groups": count, "interval": count >= FEWEST_GROUPS}


def mean_over_prompts(table: Table, column: str) -> dict[str, Any]:
    """The mean over prompts of their mean over pairs; {} for none. A prompt counts as much as its pairs' shares do on
    average, so that three prompts for one outline count once; one of too few groups is `left_out`: resamples without
    them would be of another mean."""
    kept = table.where(~np.isnan(table[column]))
    groups_of = {
        prompt: len(np.unique(kept.groups()[kept["prompt"] == prompt])) for prompt in np.unique(kept["prompt"])
    }
    enough = [prompt for prompt, count in groups_of.items() if count >= FEWEST_GROUPS]
    if not enough:
        return {}
    # Shares are of all prompts for an outline, also of those that are left out here.
    counted_N, shares_N = np.isin(kept["prompt"], enough), kept.shares()
    kept, shares_N = kept.where(counted_N), shares_N[counted_N]
    prompts, number_N = np.unique(kept["prompt"], return_inverse=True)
    values_N = kept[column]

    def score(index: np.ndarray) -> float:
        number = number_N[index]
        counts = np.bincount(number, minlength=len(prompts))
        here = counts > 0
        means = np.bincount(number, values_N[index], len(prompts))[here] / counts[here]
        weights = np.bincount(number, shares_N[index], len(prompts))[here] / counts[here]
        return float((means * weights).sum() / weights.sum())

    found = bootstrap(score, kept.groups(), count=RESAMPLES, seed=SEED)
    return rounded(found) | {
        "prompts": len(prompts),
        "left_out": len(groups_of) - len(prompts),
        "groups": len(np.unique(kept.groups())),
        "interval": True,
    }


def difference(first_N: np.ndarray, second_N: np.ndarray, table: Table) -> dict[str, Any]:
    """Mean of first minus second over a table's pairs that have both (pairs of one outline count once), its interval,
    and the signed-rank p over groups (each group's mean difference is one unit)."""
    gaps_N, groups_N, shares_N = first_N - second_N, table.groups(), table.shares()
    found = mean(gaps_N, groups_N, shares_N)
    if not found:
        return {}
    kept_N = ~np.isnan(gaps_N)
    names, number_N = np.unique(groups_N[kept_N], return_inverse=True)
    by_group = np.bincount(number_N, (gaps_N * shares_N)[kept_N]) / np.bincount(number_N, shares_N[kept_N])
    ids = tuple(names.tolist())
    test = wilcoxon(Units(ids, by_group.round(12)), Units(ids, np.zeros(len(ids))))
    return found | {"p": test.p, "better_groups": int((by_group > 0).sum())}


def adjusted(family: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same differences with Holm's p over the family of all that are not empty."""
    tested = {name: found for name, found in family.items() if found}
    p = holm({name: found["p"] for name, found in tested.items()})
    return {name: found | {"p_holm": p[name]} for name, found in tested.items()}


def auroc(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Area under the ROC curve, ties half; NaN where one of the two is missing."""
    return macro_auroc(np.column_stack([-scores_N, scores_N]), positive_N.astype(np.int64))


def auroc_figure(scores_N: np.ndarray, positive_N: np.ndarray, groups_N: np.ndarray) -> dict[str, Any]:
    """The area with its interval over groups; {} where one label is missing, no interval where too few groups hold
    both."""
    value = auroc(scores_N, positive_N)
    if np.isnan(value):
        return {}
    counts = {"present": int(positive_N.sum()), "absent": int((~positive_N).sum())}
    without = rounded(Figure(value, value, value)) | counts | {"interval": False}
    if len(np.unique(groups_N)) < FEWEST_GROUPS:
        return without
    try:
        score = RunsScore(macro_auroc, np.column_stack([-scores_N, scores_N])[None], positive_N.astype(np.int64))
        found = bootstrap(score, groups_N, score.labels_N, RESAMPLES, SEED)
    except StatisticsInvalid:
        return without
    return rounded(found) | counts | {"interval": True}


def auroc_within(
    scores_N: np.ndarray, positive_N: np.ndarray, prompts_N: np.ndarray, groups_N: np.ndarray
) -> dict[str, Any]:
    """The mean, over prompts that have both labels, of the area among a prompt's own pairs: what a score that reads the
    prompt alone cannot raise above ½. With its interval over groups (each resample's mean is over the prompts that have
    both labels in it), and `by_prompt`; {} where no prompt has both."""
    names, number_N = np.unique(groups_N, return_inverse=True)
    picked_BG = np.array(list(islice(picks(len(names), SEED), RESAMPLES)))
    # How often each group is counted: first all once, then the resamples.
    times_BG = np.vstack([np.ones(len(names)), *(np.bincount(picked, minlength=len(names)) for picked in picked_BG)])
    by_prompt, areas = {}, []
    for prompt in dict.fromkeys(prompts_N.tolist()):
        there, absent = (np.flatnonzero((prompts_N == prompt) & (positive_N == label)) for label in (True, False))
        if not len(there) or not len(absent):
            continue
        gaps = scores_N[there][:, None] - scores_N[absent]
        won_GG = np.zeros((len(names), len(names)))
        np.add.at(won_GG, (number_N[there][:, None], number_N[absent]), (gaps > 0) + 0.5 * (gaps == 0))
        pairs_B = times_BG[:, number_N[there]].sum(1) * times_BG[:, number_N[absent]].sum(1)
        won_B = np.einsum("bg,gh,bh->b", times_BG, won_GG, times_BG, optimize=True)
        areas.append(np.divide(won_B, pairs_B, out=np.full(len(won_B), np.nan), where=pairs_B > 0))
        by_prompt[prompt] = {"value": round(float(areas[-1][0]), 4), "present": len(there), "absent": len(absent)}
    if not areas:
        return {}
    areas_PB = np.array(areas)
    areas_PB = areas_PB[:, ~np.isnan(areas_PB).all(0)]
    value, *drawn = np.nanmean(areas_PB, axis=0).tolist()
    enough = len(names) >= FEWEST_GROUPS
    found = interval(value, drawn) if enough else Figure(value, value, value)
    return rounded(found) | {"interval": enough, "by_prompt": by_prompt}


def rounded(figure: Figure) -> dict[str, Any]:
    return {name: round(value, 4) for name, value in asdict(figure).items()}
