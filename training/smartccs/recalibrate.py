"""A site's own operating point, where it has labelled slides enough: the third step of its adaptation, an option.

Without them the source's threshold stays, and a report says so. Nothing here is served.
"""

from dataclasses import dataclass

import numpy as np

from gateway.domain.bethesda import NILM
from gateway.domain.screening import ScreeningPoint
from training.smartccs.mode_figures import against, right_class
from training.smartccs.modes import NONE, SITE, state_of, with_state
from training.smartccs.slide_fit import Calibration, calibration_of, logits_of, operating_point
from training.smartccs.trial import AtCentre, Found, Trial

LEAST_POSITIVE, LEAST_NEGATIVE = 30, 100


@dataclass(frozen=True, slots=True)
class OwnPoint:
    """Calibration and operating point; own: whether the site's labelled slides gave them."""

    calibrated: Calibration
    point: ScreeningPoint
    own: bool


def recalibrated(logits_NC: np.ndarray, labels_N: np.ndarray, source: OwnPoint, sensitivity: float) -> OwnPoint:
    """From a site's labelled slides, of the answers that it is served with: the calibration of least log loss, then the
    highest threshold at which this share of the abnormal ones is found. The source's with fewer than 30 abnormal
    slides or fewer than 100 NILM."""
    positive = int((labels_N != NILM).sum())
    if positive < LEAST_POSITIVE or len(labels_N) - positive < LEAST_NEGATIVE:
        return source
    calibrated = calibration_of(logits_NC, labels_N)
    point = operating_point(calibrated(logits_NC), labels_N, sensitivity, source.point.supported)
    return OwnPoint(calibrated, point, True)


def recalibrated_at(trial: Trial, centre: AtCentre) -> Found:
    """Step C at a centre: sensitivity and specificity of the test bags at the source's threshold and at that of the
    centre's labelled validation bags, without adaptation and with the site's state, over all heads."""
    labels_N, count = centre.raw.slides("test").labels_B, trial.recipe.bootstrap
    labelled_B = centre.raw.slides("validation").labels_B
    rows = {}
    for mode in (NONE, SITE):
        before, after, points, own, right = [], [], [], 0, []
        for each in trial.answerers:
            if mode == SITE:
                state = state_of(centre, each)
                chosen, asked = (with_state(centre, each, state, part) for part in ("validation", "test"))
            else:
                chosen, asked = (
                    logits_of(each.head, centre.raw.slides(part).features) for part in ("validation", "test")
                )
            source = OwnPoint(each.calibrated, each.point, False)
            found = recalibrated(chosen, labelled_B, source, trial.recipe.sensitivity)
            before.append(each.probabilities(asked))
            after.append(found.calibrated(asked))
            points.append(found.point)
            own += found.own
            right.append(right_class(after[-1], labels_N, found.point))
        kept = against(np.stack(before), np.stack(before), labels_N, [each.point for each in trial.answerers], count)
        moved = against(np.stack(after), np.stack(before), labels_N, points, count)
        rows[mode] = {
            "source": {name: kept[name] for name in ("sensitivity", "specificity")},
            "own": {name: moved[name] for name in ("sensitivity", "specificity")},
            "heads": own,
            "right_class": right[trial.trained.best],
        }
    return {
        "centre": centre.name,
        "abnormal": int((labelled_B != NILM).sum()),
        "nilm": int((labelled_B == NILM).sum()),
        "modes": rows,
    }
