"""JSON Web Tokens (RFC 7519, RFC 8725): first their size and head, then the signature, then the claims."""

import base64
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from gateway.operations.auth.key_sets import Finder
from gateway.operations.auth.refusal import Credential, Refused
from gateway.operations.errors import Unauthenticated

LEEWAY_S = 30
MAX_CHARACTERS = 8192
_NAME = 255
_LAST_TIME = 2**40

_CLAIMS: tuple[tuple[type[jwt.PyJWTError], str, str], ...] = (
    (jwt.ExpiredSignatureError, "expired", "The token has expired: get a new one."),
    (jwt.ImmatureSignatureError, "not-yet-valid", "The token is not valid yet: check the clocks."),
    (jwt.InvalidAudienceError, "audience", "The token is for another audience than this server."),
    (jwt.InvalidIssuerError, "issuer", "The token is not from this server's identity provider."),
    (jwt.MissingRequiredClaimError, "missing-claim", "The token lacks a claim that it must have: exp, iss, aud, sub."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a token must be. `types`: values of its head's `typ` in small letters, None where it may be left out.

    `subject` names whom its claims are for, once their signature is good.
    """

    credential: Credential
    algorithms: Collection[str]
    types: Collection[str | None]
    audience: str
    subject: Callable[[Mapping[str, Any]], str]
    issuer: str | None = None
    require: tuple[str, ...] = ("exp", "iss", "aud", "sub")


def verified(token: str, find: Finder, rules: Rules) -> Mapping[str, Any]:
    """The claims of a token whose signature and times are good; `exp` is a whole number.

    Keys come from `find` alone: `jku`, `x5u`, `jwk` and `x5c` of its head are never followed. Raises Refused, and what
    `find` raises.
    """
    what = rules.credential
    if len(token) > MAX_CHARACTERS:
        raise Refused(what, "too-large")
    head = head_of(token, what)
    algorithm, kind, kid = head.get("alg"), head.get("typ"), head.get("kid")
    if not isinstance(algorithm, str) or algorithm not in rules.algorithms:
        raise Refused(what, "algorithm")
    if "crit" in head:
        raise Refused(what, "critical-extension")
    if (kind.lower() if isinstance(kind, str) else kind) not in rules.types:
        raise Refused(what, "type")
    if kid is not None and len(kid) > _NAME:
        raise Refused(what, "malformed")
    key = find(kid, algorithm)
    if key is None:
        raise Refused(what, "unknown-key")
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=rules.audience,
            issuer=rules.issuer,
            leeway=LEEWAY_S,
            options={"require": list(rules.require)},
        )
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
        raise Refused(what, "signature") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason, said = next(
            ((name, text) for kind, name, text in _CLAIMS if isinstance(error, kind)), ("malformed", "")
        )
        subject = _signed_subject(token, key, algorithm, rules) if said else ""
        raise Refused(what, reason, Unauthenticated(said) if said else None, subject=subject) from None
    if not is_name(claims["sub"]):
        raise Refused(what, "malformed")
    # It may be written as a text, or be larger than any time.
    return {**claims, "exp": min(int(claims["exp"]), _LAST_TIME)}


def head_of(token: str, what: Credential) -> Mapping[str, Any]:
    """The head of a token, nothing of it verified. Raises Refused where there is none."""
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise Refused(what, "malformed") from None


def is_name(value: object) -> bool:
    """Whether it can name somebody in the audit trail: printable, and not too long for it."""
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def thumbprint(certificate: bytes) -> str:
    """`x5t#S256` of a certificate (DER): RFC 8705 3.1."""
    return base64.urlsafe_b64encode(hashlib.sha256(certificate).digest()).rstrip(b"=").decode()


def _signed_subject(token: str, key: jwt.PyJWK, algorithm: str, rules: Rules) -> str:
    """Whom the token was made for, where its signature is good but it cannot be used."""
    names = ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
    unchecked: Any = {f"verify_{name}": False for name in names}
    claims = jwt.decode(token, key, algorithms=[algorithm], options=unchecked)
    return rules.subject(claims) if is_name(claims.get("sub")) else ""
