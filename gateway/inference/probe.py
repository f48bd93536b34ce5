"""What `pathserve doctor` says of inference: installed, running, and each model sound. Starts nothing."""

import asyncio
from typing import NamedTuple

from gateway.inference.client import Client, Endpoint
from gateway.inference.embedded import read_record
from gateway.inference.installation import check
from gateway.inference.repository import ModelRepository
from gateway.operations.errors import PathserveError
from gateway.operations.settings import Settings


class Probe(NamedTuple):
    """One line of the doctor."""

    name: str
    ok: bool
    sentence: str


def probe(settings: Settings) -> tuple[Probe, ...]:
    """Triton first, then each version of each model of the repository. Call it outside an event loop."""
    return (*_server(settings), *_models(settings))


def _server(settings: Settings) -> list[Probe]:
    if settings.triton_url:
        up = asyncio.run(_ready(Endpoint(settings.triton_url.removeprefix("grpc://"))))
        return [
            Probe("triton", up, "external server ready" if up else "external server (PATHSERVE_TRITON_URL) is silent")
        ]
    try:
        installation = check(settings.triton_venv)
    except PathserveError as error:
        return [Probe("triton", False, error.detail)]
    lines = [Probe("triton", True, f"embedded server installed (Python {installation.python})")]
    record = read_record(settings.state)
    if record is None:
        lines.append(Probe("triton-server", True, "not running; it starts with the first process that needs it"))
    else:
        up = asyncio.run(_ready(record.endpoint))
        sentence = "running and ready" if up else "recorded but silent; the next start replaces it"
        lines.append(Probe("triton-server", up, sentence))
    return lines


def _models(settings: Settings) -> list[Probe]:
    repository = ModelRepository(settings.model_repository)
    if not repository.folders:
        return [Probe("models", False, "the model repository holds no model. Run `make engines`.")]
    return [_model(repository, folder) for folder in repository.folders]


def _model(repository: ModelRepository, folder: str) -> Probe:
    """A version that is not approved is no fault of the installation: it is whole, and does not serve."""
    try:
        repository.verify(folder)
        card, gate = repository.card(folder), repository.gate(folder)
    except PathserveError as error:
        return Probe(f"model {folder}", False, error.detail)
    state = "APPROVED" if gate.approved else f"{gate.state}, not approved, so it cannot serve"
    return Probe(
        f"model {folder}",
        True,
        f"{card.name} version {card.version.version}, {gate.target} {gate.precision}, {state}; every digest as sealed",
    )


async def _ready(endpoint: Endpoint) -> bool:
    async with Client(endpoint) as client:
        return await client.ready(timeout_s=2.0)
