"""`pathserve serve` on any free port, with the stand-in worker (argv: how many) instead of the real one."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.http.serve import serve
from gateway.operations.errors import PathserveError

STANDIN = Path(__file__).parents[1] / "analyses" / "standin.py"


def main(arguments: Sequence[str]) -> int:
    """The arguments: port, workers."""
    port, workers = map(int, arguments)
    try:
        return serve("127.0.0.1", port, workers, command=[sys.executable, str(STANDIN), str(os.getpid())])
    except PathserveError as error:
        sys.exit(error.detail)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
