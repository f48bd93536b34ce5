"""Who asks: a person, a system, or the holder of an API key, with its tenant and what it may do."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do. `analyses:sign` is a person's alone."""

    ANALYSES_READ = "analyses:read"
    ANALYSES_WRITE = "analyses:write"
    ANALYSES_SIGN = "analyses:sign"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    AUDIT_READ = "audit:read"
    ADMIN = "admin"


MACHINE_SCOPES = frozenset(Scope) - {Scope.ANALYSES_SIGN}
"""What keys, systems and our own commands can hold at most."""


class PrincipalKind(StrEnum):
    """`device` is our own worker and command line."""

    PERSON = "person"
    SYSTEM = "system"
    KEY = "key"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    `subject` is stable and unique over all kinds (`person:…`, `system:…`, `key:…`); it is what the audit trail and the
    rate limits know. `name` is for people to read. `address`: where the request came from.
    """

    subject: str
    kind: PrincipalKind
    tenant: str
    scopes: frozenset[Scope]
    name: str | None = None
    address: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it has this scope; `admin` has every one but `analyses:sign`, which only a person can hold."""
        if scope is Scope.ANALYSES_SIGN:
            return self.kind is PrincipalKind.PERSON and scope in self.scopes
        return scope in self.scopes or Scope.ADMIN in self.scopes


DEFAULT_TENANT = "default"
"""The tenant of a server that is told none."""
