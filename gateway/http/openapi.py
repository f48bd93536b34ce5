"""`python -m gateway.http.openapi`: the API's description as JSON, as it is kept in docs/openapi.json."""

import json
import sys

from gateway.http.app import build_api


def document() -> str:
    """The OpenAPI 3.1 document, indented, with a line break at its end."""
    return json.dumps(build_api().openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
