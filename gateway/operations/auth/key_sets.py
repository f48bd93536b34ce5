"""Public keys as JSON Web Key Sets (RFC 7517): which of them may verify what, and when they are fetched anew."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jwt
import structlog

from gateway.operations.auth.fetch import TIMEOUT_S
from gateway.operations.errors import IdentityProviderUnavailable, TargetNotAllowed

log = structlog.get_logger("gateway.operations.auth")

Finder = Callable[[str | None, str], jwt.PyJWK | None]
"""The key of a `kid` that may verify an algorithm; None where there is none."""

_KIND: Mapping[str, tuple[str, str | None]] = {
    **{f"{family}{bits}": ("RSA", None) for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
ALGORITHMS = frozenset(_KIND)
"""All that we verify: signatures by public keys only."""

_KEYS = 100
_RSA_BITS = (2048, 8192)
_EXPONENT_CHARACTERS = 8

_FRESH_S, _STALE_S = 600.0, 3600.0
_AGAIN_S, _FAILED_S = 30.0, 5.0
_WAITING = 4


def keys_in(document: Any) -> tuple[Mapping[str, Any], ...]:
    """The keys of a set, whatever their kind. Raises ValueError where it is none, or holds too many."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or len(keys) > _KEYS or not all(isinstance(key, dict) for key in keys):
        raise ValueError("no JSON Web Key Set")
    return tuple(keys)


def find_key(keys: Sequence[Mapping[str, Any]], kid: str | None, algorithm: str) -> jwt.PyJWK | None:
    """The key that may verify this algorithm under this `kid`; without a `kid`, the only one that may."""
    fitting = [key for key in keys if _fits(key, algorithm) and kid in (None, key.get("kid"))]
    if not fitting or (kid is None and len(fitting) > 1):
        return None
    try:
        found = jwt.PyJWK(dict(fitting[0]), algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        return None
    bits = getattr(found.key, "key_size", None)
    if fitting[0]["kty"] == "RSA" and not (bits is not None and _RSA_BITS[0] <= bits <= _RSA_BITS[1]):
        return None
    return found


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kind, curve = _KIND[algorithm]
    operations = key.get("key_ops", ["verify"])
    exponent, modulus = key.get("e", ""), key.get("n", "")
    return (
        key.get("kty") == kind
        and (curve is None or key.get("crv") == curve)
        and key.get("alg", algorithm) == algorithm
        and key.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        # A private or a symmetric key has no place where everybody can read it.
        and not {"d", "k"} & key.keys()
        # Numbers that would make one verification slow.
        and isinstance(exponent, str)
        and isinstance(modulus, str)
        and len(exponent) <= _EXPONENT_CHARACTERS
        and len(modulus) <= _RSA_BITS[1] // 4
    )


class FetchedKeys:
    """The keys that somebody publishes. Fetched when first needed, every ten minutes, and, at most every 30 s, where a
    `kid` is not known; those that vanish are dropped. While they cannot be fetched, they are good for an hour.
    Thread-safe: one thread fetches; a few wait for it, the others are told to come again.
    """

    def __init__(self, fetch: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`fetch` gives the key set. It raises IdentityProviderUnavailable, TargetNotAllowed, ValueError."""
        self._fetch = fetch
        self._clock = clock
        self._keys: tuple[Mapping[str, Any], ...] = ()
        self._got = self._tried = -float("inf")
        self._failure: IdentityProviderUnavailable | None = None
        self._fetching = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_WAITING)

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """A `Finder`. Raises IdentityProviderUnavailable where the keys that it would need cannot be had."""
        found = find_key(self._keys, kid, algorithm)
        age = self._clock() - self._got
        if found is None or age > _FRESH_S:
            self._refresh(wait=found is None or age > _STALE_S)
            found = find_key(self._keys, kid, algorithm)
        if self._failure is not None and (found is None or self._clock() - self._got > _STALE_S):
            raise IdentityProviderUnavailable(self._failure.detail)
        return found

    def _refresh(self, *, wait: bool) -> None:
        tried = self._tried
        if self._clock() - tried < (_AGAIN_S if self._failure is None else _FAILED_S):
            return
        if not self._fetching.acquire(blocking=False) and not (wait and self._wait()):
            return
        try:
            if self._tried == tried:
                self._try()
        finally:
            self._fetching.release()

    def _wait(self) -> bool:
        busy = IdentityProviderUnavailable("The identity provider's keys are being fetched; try again in a moment.")
        if not self._waiting.acquire(blocking=False):
            raise busy
        try:
            # Twice: a provider is asked where its keys are, and for them.
            if not self._fetching.acquire(timeout=2 * TIMEOUT_S + 1.0):
                raise busy
        finally:
            self._waiting.release()
        return True

    def _try(self) -> None:
        try:
            self._keys = keys_in(self._fetch())
            self._got, self._failure = self._clock(), None
        except IdentityProviderUnavailable as error:
            self._failure = error
        except (TargetNotAllowed, ValueError):
            self._failure = IdentityProviderUnavailable(
                "The identity provider's keys cannot be fetched from where it says they are; see the server's log."
            )
        finally:
            self._tried = self._clock()
        if self._failure is not None:
            log.warning("the keys of an identity provider or a client cannot be fetched", detail=self._failure.detail)
