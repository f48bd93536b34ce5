"""`python -m training.pathbench run|update|rank|check-split|page`: each subcommand is a module's `main`."""

import sys
from importlib import import_module

_MODULES = {
    "run": "training.pathbench.runner",
    "update": "training.pathbench.runner",
    "rank": "training.pathbench.rank",
    "check-split": "training.pathbench.check_split",
    "page": "training.pathbench.page",
}


def main(arguments: list[str] | None = None) -> int:
    """The subcommand's exit status; 2 where there is no such subcommand."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] not in _MODULES:
        print(f"Say what to do: python -m training.pathbench {'|'.join(_MODULES)} …", file=sys.stderr)
        return 2
    chosen, *rest = given
    if chosen == "update":
        rest = ["--update", *rest]
    status: int = import_module(_MODULES[chosen]).main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
