"""Errors of training and exporting, below the one error tree (DESIGN.md law 6)."""

from gateway.operations.errors import PathserveError


class TrainingError(PathserveError):
    reason, title = "training", "Training failed"


class DataMissing(TrainingError):
    """A data file is absent, changed, or not fit for weights that ship."""

    reason, title = "data-missing", "Training data missing"


class RecipeInvalid(TrainingError):
    reason, title = "recipe-invalid", "Recipe not valid"


class RunInvalid(TrainingError):
    """A run folder is incomplete, truncated or does not agree with its own digests."""

    reason, title = "run-invalid", "Run folder not usable"


class WeightsInvalid(RunInvalid):
    """Weights that do not fit the network: a missing, surplus or differently shaped tensor, or NaN."""

    reason, title = "weights-invalid", "Weights do not fit the network"


class ResultInvalid(TrainingError):
    """A result of the bench that cannot be read, or that its own controls declare void."""

    reason, title = "result-invalid", "Result of the bench not usable"


class TaskInvalid(TrainingError):
    """A task of the bench that its data cannot fill: an unknown kind, an empty bag, one class only."""

    reason, title = "task-invalid", "Task of the bench not usable"


class SplitInvalid(TrainingError):
    """A split that cannot serve: a class missing in a part, or a table that is none."""

    reason, title = "split-invalid", "Split not usable"


class LeakageRefused(TrainingError):
    """What was learned from stands in what is tested."""

    reason, title = "leakage", "Leakage refused"
