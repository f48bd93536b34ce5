"""Why an encoder cannot be built."""

from training.errors import TrainingError


class EncoderMissing(TrainingError):
    """Its weights or its run are not here."""

    reason, title = "encoder-missing", "Encoder not here"


class EncoderInvalid(TrainingError):
    """It is not what its card says, or its card says too little to build it."""

    reason, title = "encoder-invalid", "Encoder not usable"


class LicenceNotAccepted(TrainingError):
    """Its licence has to be accepted in so many words."""

    reason, title = "licence-not-accepted", "Licence not accepted"
