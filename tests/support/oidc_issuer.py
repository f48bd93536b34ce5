"""An identity provider of a test's own: discovery and keys by real HTTP on loopback, tokens by real keys."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "pathserve"
_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@dataclass(frozen=True)
class SigningKey:
    """A private key with its name and the algorithm that it signs by."""

    kid: str
    algorithm: str
    private: Any

    @classmethod
    def new(cls, kid: str, algorithm: str = "ES256", bits: int = 2048) -> "SigningKey":
        if algorithm in _CURVES:
            return cls(kid, algorithm, ec.generate_private_key(_CURVES[algorithm]))
        if algorithm == "EdDSA":
            return cls(kid, algorithm, ed25519.Ed25519PrivateKey.generate())
        return cls(kid, algorithm, rsa.generate_private_key(public_exponent=65537, key_size=bits))

    @property
    def public(self) -> dict[str, Any]:
        """As a JSON Web Key."""
        kind = jwt.get_algorithm_by_name(self.algorithm)
        shown: dict[str, Any] = json.loads(kind.to_jwk(self.private.public_key()))
        shown.pop("key_ops", None)
        return {**shown, "kid": self.kid, "use": "sig"}

    def sign(self, claims: Mapping[str, Any], **head: Any) -> str:
        """A token; `head` adds to its head, or takes away what is None there."""
        found = {key: value for key, value in {"kid": self.kid, **head}.items() if value is not None}
        # Not as PyJWT makes claims, which refuses many that others may send.
        return jwt.api_jws.encode(json.dumps(dict(claims)).encode(), self.private, self.algorithm, found)


def key_set(*keys: SigningKey) -> dict[str, Any]:
    return {"keys": [key.public for key in keys]}


@dataclass
class Issuer:
    """What it publishes and how it behaves; all of it may be changed while it runs.

    `metadata` and `answer` replace what it says of itself and of its keys; `pause_s` is how long it thinks first.
    """

    keys: list[SigningKey] = field(default_factory=lambda: [SigningKey.new("first")])
    port: int = 0
    metadata: dict[str, Any] | None = None
    answer: bytes | None = None
    status: int = 200
    pause_s: float = 0.0
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/realms/hospital"

    def claims(self, **changes: Any) -> dict[str, Any]:
        """A pathologist's, unless changed; a claim that is None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "dr-anna",
            "azp": "viewer",
            "iat": now,
            "exp": now + 300,
            "scope": "openid analyses:read analyses:write analyses:sign",
            "tenant": "north",
            "name": "Dr. Anna Example",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, key: SigningKey | None = None, head: Mapping[str, Any] | None = None, **changes: Any) -> str:
        return (key or self.keys[0]).sign(self.claims(**changes), **head or {})

    def page(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        time.sleep(self.pause_s)
        if self.status != 200:
            return self.status, b"{}"
        if path == "/realms/hospital/.well-known/openid-configuration":
            found = {"issuer": self.url, "jwks_uri": f"{self.url}/certs"}
            return 200, json.dumps(found if self.metadata is None else self.metadata).encode()
        if path == "/realms/hospital/certs":
            return 200, json.dumps(key_set(*self.keys)).encode() if self.answer is None else self.answer
        return 404, b"{}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        status, body = self.server.issuer.page(self.path)
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"{self.server.issuer.url}/certs")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    issuer: Issuer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up on a slow issuer are expected."""


@contextmanager
def running_issuer(issuer: Issuer) -> Iterator[Issuer]:
    """The issuer on its port (a free one, unless it had one before) until the block ends."""
    with _Server(("127.0.0.1", issuer.port), _Handler) as server:
        server.issuer = issuer
        issuer.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
