"""A Triton server that somebody else runs (PATHSERVE_TRITON_URL): we never start or stop it."""

import asyncio
import time

from gateway.inference.client import Client, Endpoint
from gateway.inference.stubs import Stub
from gateway.operations.errors import InferenceUnavailable

WAIT_S = 10.0


class ExternalServer:
    """The same methods as the embedded server has, for a server whose life is not ours."""

    owner = False

    def __init__(self, url: str) -> None:
        self._endpoint = Endpoint(url.removeprefix("grpc://"))

    def stubs(self) -> tuple[Stub, ...]:
        return ()

    def dead(self) -> frozenset[int]:
        return frozenset()

    def kill(self) -> None:
        """Not ours to end."""

    def needs_attention(self) -> bool:
        return False

    async def ensure(self) -> Endpoint:
        """Wait for the server to answer. Raises InferenceUnavailable."""
        deadline = time.monotonic() + WAIT_S
        async with Client(self._endpoint) as client:
            while not await client.ready(timeout_s=2.0):
                if time.monotonic() > deadline:
                    raise InferenceUnavailable(
                        "The Triton server of PATHSERVE_TRITON_URL does not answer. Start it, or correct the setting "
                        "(host:port of its gRPC service)."
                    )
                await asyncio.sleep(0.2)
        return self._endpoint

    async def stop(self) -> None:
        """Nothing to end."""
