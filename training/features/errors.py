"""Why features cannot be computed or read."""

from training.errors import TrainingError


class FeaturesMixed(TrainingError):
    """Feature files that were not made alike: another encoder, transform or tile."""

    reason, title = "features-mixed", "Features are not alike"


class FeaturesInvalid(TrainingError):
    """A feature file, an encoder's answer or an output folder that cannot be used."""

    reason, title = "features-invalid", "Features not usable"
