"""`python -m gateway.inference.preflight`: one line that says whether the embedded Triton can run; for `make setup`.

`--interpreter PATH` asks whether that Python can carry the environment; without it the installed one is checked.
"""

import sys
from pathlib import Path

from gateway.inference.installation import check, find_libpython, look
from gateway.operations.errors import PathserveError
from gateway.operations.settings import settings


def main(arguments: list[str]) -> int:
    """The exit status: 0 = it can run, 1 = it cannot, with what to do on stderr."""
    try:
        if len(arguments) == 2 and arguments[0] == "--interpreter":
            found = find_libpython(look(Path(arguments[1])))
            print(f"embedded Triton: this Python can carry it ({found.name})")
        else:
            installation = check(settings().triton_venv)
            print(f"embedded Triton: ready (Python {installation.python}, {installation.libpython.name})")
    except PathserveError as error:
        print(f"embedded Triton: {error.detail}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
