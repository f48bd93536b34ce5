"""`python -m tests.faults.campaign --kills 50 --analyses 200 [--seed N] [--database sqlite|postgresql] [--write]`."""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.faults.campaign.page import lines, write_page
from tests.faults.campaign.run import run


def main() -> int:
    """Run a campaign and print its table; exit status 1 where something was not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--analyses", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="default: by chance; it is printed")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--minutes", type=float, default=25.0, help="what has not ended by then is a fault")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work here and leave everything for a look")
    parser.add_argument("--write", action="store_true", help="add the campaign to docs/results/faults.md")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="pathserve-campaign-"))
    try:
        result = run(
            folder.resolve(),
            seed=seed,
            kills=arguments.kills,
            analyses=arguments.analyses,
            database=arguments.database,
            most_s=60 * arguments.minutes,
        )
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(lines(result)))
    for fault in result.faults:
        print(f"FAULT: {fault}")
    if arguments.write:
        write_page(result)
    return 0 if not result.faults and all(control.noticed for control in result.controls) else 1


if __name__ == "__main__":
    sys.exit(main())
