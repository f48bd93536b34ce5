"""The server's own API key: a bearer token, compared in constant time, kept as a hash only."""

import hashlib
import hmac
import secrets
from pathlib import Path

from pydantic import SecretStr

from gateway.operations.disk import written_whole
from gateway.operations.errors import StateError

HASH_FILE = "api-key.sha256"


class ApiKey:
    """Knows the SHA-256 of the key. A generated key has 256 random bits, so a plain hash cannot be searched."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    @classmethod
    def of(cls, key: str) -> "ApiKey":
        return cls(hashlib.sha256(key.encode()).digest())

    def matches(self, token: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha256(token).digest(), self._digest)


def load_api_key(configured: SecretStr | None, state: Path) -> tuple[ApiKey, str | None]:
    """The key of this server, and its text where it was generated just now (to be shown once).

    The configured key wins; else the one whose hash lies in the state folder; else a new one. Raises StateError.
    """
    if configured is not None:
        return ApiKey.of(configured.get_secret_value()), None
    path = state / HASH_FILE
    try:
        if path.exists():
            digest = bytes.fromhex(path.read_text().strip())
            if len(digest) != hashlib.sha256().digest_size:
                raise ValueError
            return ApiKey(digest), None
        key = secrets.token_urlsafe(32)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_whole(path, private=True) as out:
            out.write(hashlib.sha256(key.encode()).hexdigest().encode() + b"\n")
    except (OSError, ValueError) as error:
        raise StateError(
            f"The API key's hash cannot be read or written; check {HASH_FILE} in the state folder, or set "
            "PATHSERVE_API_KEY."
        ) from error
    return ApiKey.of(key), key
