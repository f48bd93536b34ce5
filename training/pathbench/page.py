"""The leaderboard as one HTML file that needs nothing else:

    python -m training.pathbench page [docs/results/pathbench.json] [--out docs/results/pathbench.html]

Style, script and figures stand in the file; its policy admits that script and style by their digests and nothing from
anywhere else.
"""

import argparse
import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training import command
from training.errors import ResultInvalid
from training.files import write_atomic

RESULTS, PAGE = Path("docs/results/pathbench.json"), Path("docs/results/pathbench.html")
TEMPLATES = Path(__file__).parent / "templates"
_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
"""Signs that would end the element that holds the figures, as JSON escapes."""


def main(arguments: list[str]) -> int:
    """0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m training.pathbench page", description="Write the leaderboard's page."
    )
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    return command.status(lambda: write_atomic(given.out, page(_read(given.results)).encode()), "The page")


def page(results: Mapping[str, Any]) -> str:
    """The page of `boards` (see `leaderboard`), `not_run` and `controls`."""
    style, script = (_text(name) for name in ("leaderboard.css", "leaderboard.js"))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("leaderboard.html")
        .render(
            policy=policy,
            style=style,
            script=script,
            boards=results["boards"],
            not_run=results["not_run"],
            controls=results["controls"],
            data=json.dumps(results["boards"], ensure_ascii=False, allow_nan=False).translate(_IN_SCRIPT),
        )
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_bytes())
        return {key: results[key] for key in ("boards", "not_run", "controls")}
    except (OSError, ValueError, KeyError, TypeError):
        raise ResultInvalid(
            f"{path.name} holds no boards. Run the bench: python -m training.pathbench update."
        ) from None


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
