"""schemathesis on a running server: requests made from the API's own description, right and wrong ones, all checks.

`python -m tests.http.rogue --max-examples 200 --seed 7` is the long run; the suite has a short one.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.http.serving import KEY, Server, until

_CONFIG = """
continue-on-failure = true
headers = {{ Authorization = "Bearer {key}" }}

[generation]
database = "none"

[dictionaries.analyses]
values = {analyses}

# Most requests are to reach an analysis that there is.
[parameters]
"path.analysis_id" = {{ dictionary = "analyses", probability = 0.7 }}

# What fits the schema may be refused all the same: a slide named twice, a key that was used with another order;
[[operations]]
include-name = "POST /v1/analyses"
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 422]

# a prompt of other words, a slide that is not there;
[[operations]]
include-name = "POST /v1/segment"
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 422]

# a cursor of another list, a series that is not the case's;
[[operations]]
include-name = ["GET /v1/analyses", "POST /v1/analyses/{{analysis_id}}/feedback"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409]

# a version that the analysis has not any more.
[[operations]]
include-name-regex = "^(PATCH|DELETE) |/(retry|sign|amend)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 412]
"""
_UNLIMITED = {"PATHSERVE_RATE_LIMIT": "1000000", "PATHSERVE_LOGIN_LIMIT": "1000000"}


def start(state: Path) -> Server:
    """A server with the stand-in worker, and no limit that a machine could reach."""
    return Server(state, **_UNLIMITED)


def attack(server: Server, folder: Path, *, seed: int, max_examples: int) -> tuple[int, str]:
    """Run all checks in all phases but the stateful one; the number of cases, and what was found ("" for nothing)."""
    analyses = [server.order() for _ in range(4)]
    for analysis in analyses[:2]:
        until(lambda each=analysis: server.state_of(each) in ("completed", "failed"))  # type: ignore[misc]
    server.request("DELETE", f"/v1/analyses/{analyses[2]}")
    config = folder / "schemathesis.toml"
    config.write_text(_CONFIG.format(key=KEY, analyses=json.dumps(analyses)))
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", config),
            *("run", f"{server.url}/openapi.json", "--checks", "all", "--phases", "examples,coverage,fuzzing"),
            *(
                "--seed",
                str(seed),
                "--max-examples",
                str(max_examples),
                "--request-timeout",
                "60",
                "--max-response-time",
                "60",
            ),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    cases = re.search(r"([0-9]+) generated", done.stdout)
    return int(cases[1]) if cases else 0, "" if done.returncode == 0 else done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-examples", type=int, default=200)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder) / "state")
        try:
            cases, found = attack(server, Path(folder), seed=chosen.seed, max_examples=chosen.max_examples)
            alive = server.request("GET", "/v1/status").status_code == 200
        finally:
            server.kill()
    print(found or f"{cases} cases, seed {chosen.seed}: 0 failures")
    return 0 if cases and not found and alive else 1


if __name__ == "__main__":
    sys.exit(main())
