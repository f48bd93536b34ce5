"""Fetching the small JSON documents of an identity provider: in bounded time, of bounded size, from allowed hosts."""

import asyncio
import json
import ssl
from collections.abc import Iterable
from typing import Any

import httpx

from gateway.operations.errors import IdentityProviderUnavailable
from gateway.operations.outbound import check_outbound, guard

TIMEOUT_S = 5.0
"""For the whole of it: name, connection, TLS, answer."""
_BYTES = 512 * 1024


def get_json(url: str, allowed: Iterable[str]) -> Any:
    """The document at `url`; no redirect is followed, no proxy of the environment used.

    Raises TargetNotAllowed, IdentityProviderUnavailable.
    """
    check_outbound(url, allowed)
    try:
        status, body = asyncio.run(_get(url))
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError, OSError):
        raise IdentityProviderUnavailable(
            "The identity provider cannot be reached now, so this token cannot be verified; try again later."
        ) from None
    try:
        if status != 200 or len(body) > _BYTES:
            raise ValueError
        return json.loads(body)
    except (ValueError, RecursionError):
        raise IdentityProviderUnavailable(
            "The identity provider does not answer as one, so this token cannot be verified; try again later."
        ) from None


async def _get(url: str) -> tuple[int, bytes]:
    body = b""
    # A bound on each wait alone would let a byte now and then hold us for ever.
    async with (
        asyncio.timeout(TIMEOUT_S),
        httpx.AsyncClient(
            # The operating system's authorities: a hospital installs its own there.
            verify=ssl.create_default_context(),
            follow_redirects=False,
            trust_env=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "pathserve"},
        ) as client,
        client.stream("GET", url, extensions={"trace": guard(url)}) as response,
    ):
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > _BYTES:
                break
        return response.status_code, body
