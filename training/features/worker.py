"""A further process of a job: `python -m training.features.worker JOB INDEX`; it ends with the one that started it."""

import os
import sys
import time
from pathlib import Path

from gateway.operations.errors import PathserveError
from gateway.operations.settings import settings
from training.features.job import Job, at_work

_LOOK_S = 0.5


def main(file: Path, index: int) -> int:
    """Work at the job that a file describes. Exit status 0, or 1 with one sentence on stderr."""
    parent = os.getppid()
    job = Job.model_validate_json(file.read_bytes())
    try:
        with at_work(job, settings(), index) as hand:
            while os.getppid() == parent:
                time.sleep(_LOOK_S)
                hand.check()
    except PathserveError as error:
        print(error.detail, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
