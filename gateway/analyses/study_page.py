"""The report of a study as a page of Markdown, from its JSON document alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.analyses.study_figures import COLUMNS, WAYS

_SHOWN = 20
_TITLES = {
    "as abnormal": "no call counted as abnormal",
    "as negative": "no call counted as negative",
    "called only": "called cases only",
}


def page(document: Mapping[str, Any]) -> str:
    """Figures to three decimals, intervals as `[low, high]` (95 %)."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    study, enrolment, reference = document["study"], document["enrolment"], document["reference"]
    yield f"# Study {_text(study['name'])}"
    yield ""
    if study["title"]:
        yield _text(study["title"])
        yield ""
    if study["centres"] == "composed":
        yield "**Composed centres**: slides composed of public fields, no patient's. No evidence of clinical accuracy."
        yield ""
    yield (
        f"Look {document['look']}, {document['made']}. Registered {study['created']} by {_text(study['by'])}. Research "
        "use, not a medical device."
    )
    yield ""
    yield f"- enrolled: {enrolment['enrolled']}, of these excluded: {len(_enrolled(enrolment['excluded']))}"
    yield f"- with a reference: {document['pooled']['cases']}, without: {_listed(enrolment['without_reference'])}"
    yield f"- no answer yet: {_listed(enrolment['no_answer'])}"
    yield f"- gaps, ordered before the last one and not enrolled: {_listed(enrolment['gaps'])}"
    yield f"- ordered again, the first order counts: {_listed(enrolment['repeats'])}"
    yield (
        f"- reference standard: version {reference['version']}, {reference['rows']} rows, sha256 "
        f"`{reference['file_sha256']}`"
    )
    for earlier in reference["superseded"]:
        yield f"- it supersedes version {earlier['version']} (`{earlier['file_sha256']}`): {_text(earlier['why'])}"
    yield ""
    yield from _accuracy(document)
    yield from _confusion(document["pooled"]["confusion"])
    yield from _adaptation(document)
    yield from _histology(document["pooled"]["histology"])
    yield from _excluded(enrolment["excluded"])
    yield from _frozen(document)


def _accuracy(document: Mapping[str, Any]) -> Iterator[str]:
    groups = {**document["centres"], "pooled": document["pooled"]}
    yield "## Abnormal against NILM"
    yield ""
    yield (
        "Every enrolled case with a reference counts. One without a call is counted both ways: the truth lies between. "
        "Out of use: outside the intended use of the model, whether called or not. "
        "Shares have Wilson's 95 % interval; the AUC, of all cases with a probability (which the call rests on), has "
        "percentiles of "
        f"{document['study']['resamples']} bootstraps over patients (seed {document['study']['seed']})."
    )
    yield ""
    yield from _table(
        ("centre", "cases", "abnormal", "called", "unsatisfactory", "withheld", "not read", "no answer", "out of use"),
        [
            (
                _text(name),
                each["cases"],
                each["positives"],
                each["outcomes"]["abnormal"] + each["outcomes"]["negative"],
                *(each["outcomes"][which] for which in ("unsatisfactory", "withheld", "not read", "no answer yet")),
                each["outside_intended_use"],
            )
            for name, each in groups.items()
        ],
    )
    yield from _table(
        ("centre", "counted", "sensitivity", "specificity"),
        [
            (_text(name), _TITLES[way], *(_share(each["sides"][way][side]) for side in ("sensitivity", "specificity")))
            for name, each in groups.items()
            for way in WAYS
        ],
    )
    yield from _table(
        ("centre", "cases with a probability", "AUC", "AUC without adaptation"),
        [
            (
                _text(name),
                each["auc"]["positives"] + each["auc"]["negatives"],
                _area(each["auc"]),
                _area(each["auc_unadapted"]),
            )
            for name, each in groups.items()
        ],
    )


def _confusion(confusion: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    yield "## By category, pooled"
    yield ""
    columns = [column for column in COLUMNS if any(row[column] for row in confusion.values())]
    if columns:
        rows = [(name, *(row[column] for column in columns)) for name, row in confusion.items() if any(row.values())]
        yield from _table(("reference", *columns), rows)


def _adaptation(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## Flips by adaptation to the site"
    yield ""
    yield "Cases whose side the adaptation changes. One that it would turn normal stays abnormal, with a finding."
    yield ""
    groups = {**document["centres"], "pooled": document["pooled"]}
    yield from _table(
        ("centre", "adapted", "to abnormal: reference abnormal", "NILM", "to normal: reference abnormal", "NILM"),
        [
            (
                _text(name),
                each["adaptation"]["adapted"],
                *(
                    each["adaptation"][way][side]
                    for way in ("to_abnormal", "to_normal")
                    for side in ("reference abnormal", "reference NILM")
                ),
            )
            for name, each in groups.items()
        ],
    )


def _histology(histology: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    if not histology:
        return
    yield "## By histology, pooled"
    yield ""
    outcomes = list(next(iter(histology.values())))
    yield from _table(
        ("histology", *outcomes), [(_text(name), *(row[each] for each in outcomes)) for name, row in histology.items()]
    )


def _excluded(excluded: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not excluded:
        return
    yield "## Excluded"
    yield ""
    yield from _table(
        ("accession", "enrolled", "its result was there", "the reference was there", "reason"),
        [
            (
                _text(each["accession"]),
                *("yes" if each[what] else "no" for what in ("enrolled", "answered", "joined")),
                _text(each["reason"]),
            )
            for each in excluded
        ],
    )


def _frozen(document: Mapping[str, Any]) -> Iterator[str]:
    study = document["study"]
    yield "## What was frozen"
    yield ""
    changes = ", ".join(f"{name}={value}" for name, value in study["changes"]) or "none"
    yield from _table(
        ("what", "is"),
        [
            ("study", f"`{document['study_sha256']}`"),
            ("journal", f"{document['journal']['lines']} lines, `{document['journal']['sha256']}`"),
            ("pathserve", study["software"]),
            (
                "operating point",
                f"{_text(study['operating_point'])}: abnormal from 1 - p(NILM) = {study['abnormal_from']:g} "
                f"({_text(study['operating_point_origin'])})",
            ),
            ("settings", f"changed: {_text(changes)}; all: `{study['settings_sha256']}`"),
            *(
                (
                    f"{each['version']['name']} {each['version']['version']}",
                    f"engine `{each['version']['engine_sha256']}`, weights `{each['version']['weights_sha256']}`, card "
                    f"`{each['card_sha256']}`",
                )
                for each in study["models"]
            ),
            *(
                (
                    f"site {each['site']} version {each['version']}",
                    f"{each['verdict']}, signed by {_text(each['signed_by'])}, `{each['digest']}`",
                )
                for each in study["sites"]
            ),
        ],
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def _share(each: Mapping[str, Any]) -> str:
    if each["value"] is None:
        return "no case"
    return f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}] ({each['of']} of {each['among']})"


def _area(each: Mapping[str, Any]) -> str:
    if each["value"] is None:
        return "needs both sides"
    interval = "no interval" if each["low"] is None else f"[{each['low']:.3f}, {each['high']:.3f}]"
    return f"{each['value']:.3f} {interval}"


def _enrolled(excluded: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in excluded if each["enrolled"]]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(map(_text, names[:_SHOWN]))}{more})" if names else "0"


def _text(value: str) -> str:
    """What persons or orders wrote, on one line and without what Markdown or HTML would take for its own."""
    line = " ".join(value.split())
    for character in "\\`*_[]<>|":
        line = line.replace(character, f"\\{character}")
    return line
