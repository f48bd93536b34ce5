"""A webhook: one signed POST, as Standard Webhooks 1.0.0 lays down."""

import asyncio
import binascii
import json
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

import httpx
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from gateway import __version__
from gateway.domain.delivery import Delivery, target_name
from gateway.operations.errors import DeliveryRefused, DeliveryUnavailable, InvalidSetting, TargetNotAllowed
from gateway.operations.outbound import authority, check_outbound, guard
from gateway.operations.retry_after import retry_after_s
from gateway.operations.settings import Settings

TIMEOUT_S = 10.0
"""From the connection to the answer's head, all in all: no target holds a worker up by being slow. Nothing more of the
answer is read."""
_LEAST_SECRET_BYTES = 24  # Standard Webhooks: 24 to 64


@dataclass(frozen=True, slots=True)
class WebhookTargets:
    """Who is told, by name; how it is signed; which hosts may be called."""

    addresses: dict[str, str] = field(repr=False)
    signers: tuple[Webhook, ...] = field(repr=False)
    allowed: tuple[str, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """What PATHSERVE_WEBHOOKS and PATHSERVE_WEBHOOK_SECRETS say. Raises InvalidSetting."""
        try:
            hosts = tuple(map(authority, settings.webhooks))
        except TargetNotAllowed as error:
            raise InvalidSetting(f"PATHSERVE_WEBHOOKS is not valid. {error.detail}") from None
        if settings.webhooks and not settings.webhook_secrets:
            raise InvalidSetting(
                "PATHSERVE_WEBHOOKS is set without PATHSERVE_WEBHOOK_SECRETS: set the secrets that sign."
            )
        return cls(
            {target_name(address): address for address in settings.webhooks},
            tuple(_signer(secret.get_secret_value()) for secret in settings.webhook_secrets),
            (*hosts, *settings.outbound_hosts),
        )


def _signer(secret: str) -> Webhook:
    try:
        signer = Webhook(secret)
        enough = len(signer._whsecret) >= _LEAST_SECRET_BYTES
    except (binascii.Error, ValueError, EmptyWebhookSecretError):
        enough = False
    if not secret.startswith("whsec_") or not enough:
        raise InvalidSetting(
            'PATHSERVE_WEBHOOK_SECRETS is not valid: write ["whsec_…"], each with at least 24 random bytes in base64.'
        )
    return signer


def send_webhook(delivery: Delivery, targets: WebhookTargets) -> None:
    """POST the delivery's body, signed with every secret (several while one is rotated).

    `webhook-id` is the delivery's id, the same over all tries. Redirects are not followed. Raises TargetNotAllowed (not
    configured any more, or not to be called), DeliveryRefused (410 Gone, a redirect), DeliveryUnavailable (everything
    else but 2xx: whoever is told may be mended, and then wants to know).
    """
    address = targets.addresses.get(delivery.target)
    if address is None:
        raise TargetNotAllowed("The webhook's target is no longer among PATHSERVE_WEBHOOKS: it is not called.")
    check_outbound(address, targets.allowed)
    body = json.dumps(delivery.body, ensure_ascii=False, separators=(",", ":"))
    now = datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"pathserve/{__version__}",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(delivery.id, now, body) for signer in targets.signers),
    }
    try:
        status, after_s = asyncio.run(_post(address, body.encode(), headers))
    except (httpx.HTTPError, OSError):  # TimeoutError is one
        raise DeliveryUnavailable(
            "The webhook's target does not answer: see that it runs and can be reached."
        ) from None
    if 200 <= status < 300:
        return
    if status == 410:
        raise DeliveryRefused("The webhook's target is gone (HTTP 410): remove it from PATHSERVE_WEBHOOKS.")
    if 300 <= status < 400:
        raise DeliveryRefused(
            f"The webhook's target redirects elsewhere (HTTP {status}), which is never followed: configure its final "
            "address, then replay."
        )
    error = DeliveryUnavailable(f"The webhook's target did not take it (HTTP {status}): see its log.")
    error.after_s = after_s if status in (429, 503) else 0.0
    raise error


async def _post(address: str, body: bytes, headers: dict[str, str]) -> tuple[int, float]:
    """The status of the answer, and its Retry-After in seconds, 0 where there is none. Its body is not read."""
    extensions = {"trace": guard(address)}
    async with (
        asyncio.timeout(TIMEOUT_S),
        httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S, verify=ssl.create_default_context()) as client,
        client.stream("POST", address, content=body, headers=headers, extensions=extensions) as response,
    ):
        return response.status_code, retry_after_s(response.headers.get("retry-after")) or 0.0
