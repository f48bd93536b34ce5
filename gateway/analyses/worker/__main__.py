"""`python -m gateway.analyses.worker PID`: the worker that a server brings."""

import sys

from gateway.analyses.worker.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
