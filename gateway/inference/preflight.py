"""`python -m gateway.inference.preflight`: one line that says whether the embedded Triton can run; for `make setup`.

`--interpreter PATH` asks whether that Python can carry the environment; without it the installed one is checked.
"""

import re
import sys
from pathlib import Path

from gateway.inference.installation import REMEDY, check, find_libpython, look
from gateway.operations.errors import InferenceUnavailable, PathserveError
from gateway.operations.settings import settings

_OPENVINO = re.compile(r'^\s*backend\s*:\s*"openvino"', re.MULTILINE)


def main(arguments: list[str]) -> int:
    """The exit status: 0 = it can run, 1 = it cannot, with what to do on stderr."""
    try:
        if len(arguments) == 2 and arguments[0] == "--interpreter":
            found = find_libpython(look(Path(arguments[1])))
            print(f"embedded Triton: this Python can carry it ({found.name})")
        else:
            installation = check(settings().triton_venv)
            needing = models_of_openvino(settings().model_repository)
            if needing and not installation.openvino:
                raise InferenceUnavailable(
                    f"openvino is missing beside the embedded Triton: {', '.join(needing)} will not be served, the "
                    f"other models will. {REMEDY}"
                )
            print(f"embedded Triton: ready (Python {installation.python}, {installation.libpython.name})")
    except PathserveError as error:
        print(f"embedded Triton: {error.detail}", file=sys.stderr)
        return 1
    return 0


def models_of_openvino(repository: Path) -> list[str]:
    """The folders of a model repository that name the backend `openvino`, sorted."""
    configs = sorted(repository.glob("*/config.pbtxt"))
    return [config.parent.name for config in configs if _OPENVINO.search(config.read_text(errors="replace"))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
