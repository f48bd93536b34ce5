"""Refused logins: each is a record of the audit trail; an address that makes too many of them has to wait."""

import ipaddress
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from gateway.operations.audit import Action, AuditEvent, EventType, Outcome, append
from gateway.operations.auth.metrics import LOGINS_REFUSED
from gateway.operations.auth.store import Store
from gateway.operations.errors import Forbidden, PathserveError, StateError, TooManyRequests, Unauthenticated

log = structlog.get_logger("gateway.operations.auth")

_EPISODE_S = 60.0
_ADDRESSES = 10_000
_ANY = "A valid API key or token is needed. Send it as `Authorization: Bearer …`."


class Credential(StrEnum):
    """What was shown."""

    NONE = "none"
    KEY = "api-key"
    TOKEN = "token"  # noqa: S105
    CERTIFICATE = "certificate"
    ASSERTION = "client-assertion"
    OTHER = "other"


class Refused(Exception):
    """Why a login is refused. `subject` and `tenant` are what a valid signature has shown; never what was claimed.

    The caller is told `error`; without one, that it is not known, and nothing else.
    """

    def __init__(
        self,
        credential: Credential,
        reason: str,
        error: PathserveError | None = None,
        *,
        subject: str = "",
        tenant: str = "",
    ) -> None:
        super().__init__(reason)
        self.credential = credential
        self.reason = reason
        self.error = error or Unauthenticated(_ANY)
        self.subject = subject
        self.tenant = tenant


@dataclass
class Refusals:
    """Writes refused logins down and counts them by address. Thread-safe.

    Logins that succeed are never held up, however many others of that address are refused: a whole hospital may come
    from one address. What is limited is written down once, when it begins, not each time: no flood fills the trail.
    """

    store: Store
    a_minute: int
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _limited: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begin_anew()

    def note(self, refused: Refused, address: str) -> PathserveError:
        """The error to answer with: the refusal's own, or TooManyRequests."""
        LOGINS_REFUSED.labels(refused.credential.value, refused.reason).inc()
        window, network = RateLimitItemPerMinute(self.a_minute), _network(address)
        event = AuditEvent(
            type=EventType.USER_AUTHENTICATION,
            subtype="login-refused",
            action=Action.EXECUTE,
            outcome=Outcome.SERIOUS_FAILURE if isinstance(refused.error, Forbidden) else Outcome.MINOR_FAILURE,
            tenant=refused.tenant,
            actor=refused.subject or "unknown",
            actor_kind="unknown",
            address=address,
            detail={"credential": refused.credential.value, "reason": refused.reason},
        )
        limiter = self._bounded()
        if limiter.hit(window, network):
            self._append(event)
            return refused.error
        LOGINS_REFUSED.labels(refused.credential.value, "limited").inc()
        if self._begins(network):
            self._append(
                AuditEvent(
                    type=EventType.SECURITY_ALERT,
                    subtype="logins-limited",
                    action=Action.EXECUTE,
                    outcome=Outcome.SERIOUS_FAILURE,
                    actor="unknown",
                    actor_kind="unknown",
                    address=address,
                    detail={"a_minute": self.a_minute},
                )
            )
        free_at = limiter.get_window_stats(window, network).reset_time
        return TooManyRequests(
            "Too many logins from this address were refused: correct the key or token, and try again later.",
            max(1.0, free_at - time.time()),
        )

    def _begin_anew(self) -> None:
        self._counts = MemoryStorage()
        self._limiter = MovingWindowRateLimiter(self._counts)

    def _bounded(self) -> MovingWindowRateLimiter:
        """The limiter; a new one where it has many addresses: it keeps each, and looks through all of them again and
        again."""
        with self._lock:
            if len(self._counts.events) > _ADDRESSES:
                self._begin_anew()
            return self._limiter

    def _begins(self, network: str) -> bool:
        """True for the first limited login of an address, and again after a minute without any."""
        now = self.clock()
        with self._lock:
            last = self._limited.pop(network, None)
            self._limited[network] = now
            if len(self._limited) > _ADDRESSES:
                del self._limited[next(iter(self._limited))]
        return last is None or now - last > _EPISODE_S

    def _append(self, event: AuditEvent) -> None:
        try:
            with self.store.write() as connection:
                append(connection, event)
        except StateError as error:
            # Who may not come in stays outside, whatever the database does.
            log.error("a refused login is not in the audit trail", reason=error.reason)


def forwarded_address(values: Sequence[str]) -> str | None:
    """The last address of X-Forwarded-For: the one that the proxy before us saw. None where it is none."""
    try:
        return str(ipaddress.ip_address(",".join(values).rpartition(",")[2].strip()))
    except ValueError:
        return None


def _network(address: str) -> str:
    """Whom an address is counted as: an IPv6 host commands a whole /64, but for an IPv4 one that is written so."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
