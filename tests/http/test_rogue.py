"""schemathesis, seeded and short, on a real server with a worker; `make campaign` has the long run."""

from pathlib import Path

from tests.http.rogue import attack, start


def test_requests_made_from_the_description_find_nothing(tmp_path: Path) -> None:
    server = start(tmp_path / "state")
    try:
        cases, found = attack(server, tmp_path, seed=1, max_examples=3)
        assert not found, found[-8000:]
        assert cases > 500
        assert server.request("GET", "/v1/status").json()["workers"]
    finally:
        server.kill()
