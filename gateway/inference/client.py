"""One gRPC connection to a Triton server; the only module that knows `tritonclient`'s calls and exceptions.

What goes wrong becomes a `CallFailed` with one `Trouble`; the engine decides what to repair and what to raise.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from gateway.inference.runtime import KEY_HEADER

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted server is found again within half a second; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
    # Two engines of one process (tests) must not share a connection whose server one of them restarts.
    ("grpc.use_local_subchannel_pool", 1),
]
_CONTROL_TIMEOUT_S = 10.0
# A server that loads by itself, or one that keeps these calls for holders of a key that we do not have.
_CONTROL_REFUSED = ("explicit model load / unload is not allowed", "This protocol is restricted")
_FOLDER = re.compile(r"(?<![\w.])/(?:[^\s'\":,/]+/)+")


class Trouble(StrEnum):
    """What a failed call says about the server, and the `reason` label of the metric."""

    GONE = "unavailable"
    DEAD_STUB = "dead-stub"
    NOT_LOADED = "not-loaded"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    INVALID = "invalid-argument"
    REFUSED = "control-refused"
    STUCK = "load-never-ends"
    OTHER = "internal"


class CallFailed(Exception):
    """A call to Triton failed; `text` is the server's own sentence, for logs and model reasons."""

    def __init__(self, trouble: Trouble, text: str) -> None:
        super().__init__(text)
        self.trouble = trouble
        self.text = text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is. `shm_prefix` is known for a server of this user on this host: it may share memory."""

    url: str
    key: str | None = None
    shm_prefix: str | None = None


class Client:
    """An asynchronous connection to one server. Keep it: making clients anew leaks memory in gRPC."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._use(endpoint)
        self._closed = False
        self._client = triton.InferenceServerClient(endpoint.url, channel_args=_CHANNEL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls in flight end as CallFailed."""
        self._closed = True
        await self._client.close()

    def follow(self, endpoint: Endpoint) -> bool:
        """Use a server that took another's place at the same address; False where the address is another."""
        if endpoint.url != self.endpoint.url:
            return False
        self._use(endpoint)
        return True

    def _use(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._headers = {KEY_HEADER: endpoint.key} if endpoint.key else None

    async def ready(self, timeout_s: float = 5.0) -> bool:
        """True if the server answers that it is ready."""
        try:
            return bool(await self._client.is_server_ready(client_timeout=timeout_s))
        except InferenceServerException:
            return False

    async def model_ready(self, model: str, version: str = "") -> bool:
        """True if the server answers that the model is ready (Triton says so of a dead stub as well)."""
        try:
            return bool(await self._client.is_model_ready(model, version, client_timeout=_CONTROL_TIMEOUT_S))
        except InferenceServerException as error:
            raise _failed(error) from None

    async def load(self, model: str, timeout_s: float) -> None:
        """Load a model: nothing happens where it is loaded and its files are unchanged. Raises CallFailed."""
        try:
            await self._client.load_model(model, headers=self._headers, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise _failed(error) from None

    async def unload(self, model: str, timeout_s: float) -> None:
        """Unload a model and wait until it is gone. Raises CallFailed."""
        deadline = time.monotonic() + timeout_s
        try:
            await self._client.unload_model(model, headers=self._headers, client_timeout=timeout_s)
            while await self._client.is_model_ready(model, client_timeout=_CONTROL_TIMEOUT_S):
                if time.monotonic() > deadline:
                    raise CallFailed(Trouble.DEADLINE, f"{model} does not unload")
                await asyncio.sleep(0.02)
        except InferenceServerException as error:
            if (failed := _failed(error)).trouble is not Trouble.NOT_LOADED:
                raise failed from None

    async def ready_models(self, timeout_s: float = _CONTROL_TIMEOUT_S) -> frozenset[str]:
        """The models that are loaded, by Triton's word (a dead stub's too). Raises CallFailed."""
        try:
            index = await self._client.get_model_repository_index(headers=self._headers, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise _failed(error) from None
        return frozenset(model.name for model in index.models if model.state == "READY")

    async def answered(self, timeout_s: float = _CONTROL_TIMEOUT_S) -> dict[str, int]:
        """How many requests each loaded model has answered since it was loaded, failed ones too. Raises CallFailed."""
        try:
            statistics = await self._client.get_inference_statistics(headers=self._headers, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise _failed(error) from None
        return {
            model.name: model.inference_stats.success.count + model.inference_stats.fail.count
            for model in statistics.model_stats
        }

    async def infer(
        self, model: str, inputs: Sequence[InferInput], outputs: Sequence[str], deadline_s: float
    ) -> dict[str, np.ndarray[Any, Any]]:
        """One inference. Cancelling the task cancels the request in the server. Raises CallFailed."""
        try:
            result = await self._client.infer(
                model,
                list(inputs),
                outputs=[InferRequestedOutput(name) for name in outputs],
                client_timeout=deadline_s,
            )
        except InferenceServerException as error:
            raise _failed(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise CallFailed(Trouble.GONE, "the connection was closed") from None
            raise
        return {name: result.as_numpy(name) for name in outputs}

    async def register(self, region: str, byte_size: int) -> None:
        """Make a shared-memory file known to the server under its own name. Raises CallFailed."""
        try:
            await self._client.register_system_shared_memory(
                region, f"/{region}", byte_size, headers=self._headers, client_timeout=_CONTROL_TIMEOUT_S
            )
        except InferenceServerException as error:
            raise _failed(error) from None

    async def unregister(self, region: str) -> bool:
        """Unmap a region in the server; False while a request still uses it. Raises CallFailed."""
        try:
            await self._client.unregister_system_shared_memory(
                region, headers=self._headers, client_timeout=_CONTROL_TIMEOUT_S
            )
        except InferenceServerException as error:
            if "currently in use" in str(error.message()):
                return False
            raise _failed(error) from None
        return True

    async def regions(self) -> list[str]:
        """The names of all regions that the server knows. Raises CallFailed."""
        try:
            status = await self._client.get_system_shared_memory_status(
                headers=self._headers, client_timeout=_CONTROL_TIMEOUT_S
            )
        except InferenceServerException as error:
            raise _failed(error) from None
        return list(status.regions)


def plain_input(name: str, datatype: str, array: np.ndarray[Any, Any]) -> InferInput:
    """A tensor whose bytes travel in the message (copies them: call it in a thread for large ones)."""
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def shared_input(
    name: str, datatype: str, shape: Sequence[int], region: str, byte_size: int, offset: int
) -> InferInput:
    """A tensor that lies in a registered region."""
    tensor = InferInput(name, list(shape), datatype)
    tensor.set_shared_memory(region, byte_size, offset)
    return tensor


def _failed(error: InferenceServerException) -> CallFailed:
    status = str(error.status()).removeprefix("StatusCode.")
    text = _without_paths(str(error.message()))
    if "is not healthy" in text:
        trouble = Trouble.DEAD_STUB
    elif any(words in text for words in _CONTROL_REFUSED):
        trouble = Trouble.REFUSED
    elif status == "UNAVAILABLE" or "Unable to find shared memory region" in text:
        # A region that the server does not know: it is not the server that we registered it with.
        trouble = Trouble.GONE
    elif status == "NOT_FOUND" or "has no available versions" in text:
        trouble = Trouble.NOT_LOADED
    else:
        trouble = {
            "DEADLINE_EXCEEDED": Trouble.DEADLINE,
            "CANCELLED": Trouble.CANCELLED,
            "INVALID_ARGUMENT": Trouble.INVALID,
        }.get(status, Trouble.OTHER)
    return CallFailed(trouble, text)


def _without_paths(text: str) -> str:
    """A server's sentence on one line, without the traceback that a Python backend adds and with base names only."""
    sentence = text.partition("\n\nAt:\n")[0]
    return " ".join(_FOLDER.sub("", sentence).split())[:300]
