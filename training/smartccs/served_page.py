"""The results page's sections of what is served: the head beside its likes on the source's test bags, and what a study
of composed centres said of the served pipeline."""

from gateway.domain.bethesda import NAMES
from training.markdown import shown, table
from training.smartccs.cells_page import not_run
from training.smartccs.results import FEATURES, SHIPPED, Results, Row

_CALLS = {
    "sensitivity, no call as negative": ("as negative", "sensitivity"),
    "specificity, no call as abnormal": ("as abnormal", "specificity"),
    "sensitivity, called only": ("called only", "sensitivity"),
    "specificity, called only": ("called only", "specificity"),
}


def heads(found: Results, name: str) -> list[str]:
    """Each recipe's served head on the source's test bags: what decides, and what the probabilities are worth."""
    title, told = "Heads on the source's test bags", found.one("runs")
    runs = {
        features: run
        for recipe, features in FEATURES.items()
        if told is not None and "test" in (run := told["runs"].get(recipe, {}))
    }
    if not runs:
        return not_run(title, f"python -m training.smartccs.evaluate runs {SHIPPED} --out {name}")
    rows, recalls = [], []
    for features, run in runs.items():
        test, served = run["test"], run["served"]
        rows.append(
            (
                features,
                *(shown(test[key]) for key in ("auc", "sensitivity", "specificity")),
                f"{test['specificity_at_95']:.2f}",
                f"{test['sensitivity_high_grade']:.2f}",
                f"{test['balanced_accuracy']:.2f}",
                f"{test['calibration_error']:.2f}",
                f"{served['temperature']:.2f}; {served['abnormal_from']:.3f}",
                f"{run['control_shuffled_labels']:.2f}",
            )
        )
        recalls.append((features, *(_share(test["recall"][kind]) for kind in NAMES)))
    bags = next(iter(runs.values()))["test"]["bags"]
    dealt = ", ".join(f"{number} {kind}" for kind, number in bags.items() if number)
    return [
        f"## {title}",
        "",
        f"The head of the best validation of each recipe, without adaptation, on bags of detected cells ({dealt}). "
        "The operating point is the lowest, over the validation blocks, of the highest at which 95 % of the abnormal "
        "bags of one block's cells are found; of the three blocks one has hardly fifty nuclei. How far the sensitivity "
        "is from 95 % is how little it carries over to other blocks of images ([bags of one block](#the-gate)). Beside "
        "it the specificity at the threshold that "
        "would have found 95 % of these test bags, which nobody knows beforehand. High-grade: ASC-H, HSIL and SCC "
        "bags that are called abnormal. "
        "Calibration error: of the most probable class, ten bins. Temperature and biases are those of least log loss "
        "on the validation bags. The control is the AUC of one head that learned from shuffled labels "
        "([several, with their interval](#heads-on-detected-and-on-annotated-cells)).",
        "",
        *table(
            (
                "features",
                "AUC",
                "sensitivity",
                "specificity",
                "specificity at 95 % sensitivity",
                "sensitivity, high-grade",
                "balanced accuracy",
                "calibration error",
                "temperature; abnormal from",
                "control: shuffled labels",
            ),
            rows,
        ),
        "Recall by class, of bags whose named category is theirs; – where no bag is of the class:",
        "",
        *table(("features", *NAMES), recalls),
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def studies(found: Results, name: str) -> list[str]:
    """Reports of `pathserve study` on composed centres."""
    title = "A study of composed centres"
    if not found.studies:
        return not_run(title, f"pathserve study report NAME --results DIR --out {name}")
    lines = [
        f"## {title}",
        "",
        "The procedure of a prospective study ([studies](../studies.md)) on **composed** slides, no patients: models, "
        "operating point and settings were frozen, slides were enrolled before their analysis, the classes by which "
        "they were composed joined last. It shows that the procedure holds and what the served pipeline says of such "
        "slides, and nothing of clinical accuracy. Shares have Wilson's interval, areas a bootstrap's over slides.",
        "",
    ]
    for file, told in found.studies.items():
        study, rows = told["study"], []
        for centre, row in (*told["centres"].items(), ("all", told["pooled"])):
            calls = sum(row["outcomes"].get(each, 0) for each in ("abnormal", "negative"))
            rows.append(
                (
                    centre,
                    str(row["cases"]),
                    str(row["positives"]),
                    str(row["cases"] - calls),
                    *(_figure(row["sides"][way][side]) for way, side in _CALLS.values()),
                    _figure(row["auc"]),
                )
            )
        changed = ", ".join(f"`{key}={value}`" for key, value in study["changes"])
        lines += [
            f"`{file}`: frozen digest `{told['study_sha256'][:12]}`, abnormal from {study['abnormal_from']:.3f}, "
            f"settings changed: {changed or 'none'}.",
            "",
            *table(("centre", "slides", "abnormal", "no call", *_CALLS, "AUC"), rows),
        ]
    return lines


def _figure(figure: Row) -> str:
    if figure["value"] is None:
        return "–"
    return shown(figure) if figure["low"] is not None else f"{figure['value']:.2f} (no interval: too few)"
