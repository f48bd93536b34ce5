"""`pathserve doctor`: runs the probes it is given, one line each."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from gateway.operations.errors import PathserveError

Finding = tuple[str, bool, str]
"""(name, well, sentence)"""


def examine(probes: Mapping[str, Callable[[], Iterable[Finding]]], out: TextIO | None = None) -> int:
    """Print `ok|FAIL name: sentence` a finding; 0 where all is well, else 1. A probe may raise PathserveError."""
    well = True
    for name, probe in probes.items():
        try:
            findings = list(probe())
        except PathserveError as error:
            findings = [(name, False, error.detail)]
        except Exception as error:
            findings = [(name, False, f"the probe itself failed ({type(error).__name__}); please report it")]
        for part, passes, sentence in findings:
            print(f"{'ok  ' if passes else 'FAIL'} {part}: {sentence}", file=out or sys.stdout)
            well &= passes
    return 0 if well else 1
