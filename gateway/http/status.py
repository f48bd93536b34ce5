"""`/v1/status` and `/metrics`: how the server is."""

from datetime import datetime
from typing import Any

from fastapi import Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict

from gateway import __version__
from gateway.domain.principal import Scope
from gateway.http.context import By, Here
from gateway.http.routing import Router, needs

router = Router(tags=["status"])

_EXAMPLE: dict[str, Any] = {
    "version": __version__,
    "now": "2026-11-26T08:15:42Z",
    "started": "2026-11-26T06:00:01Z",
    "ready": True,
    "parts": {"database": True, "worker": True, "inference": True, "archive": True},
    "workers": [
        {
            "id": "pathology-1-4711-9f3b",
            "host": "pathology-1",
            "started": "2026-11-26T06:00:02Z",
            "beat": "2026-11-26T08:15:41Z",
            "parts": {"inference": True, "archive": True},
        }
    ],
    "analyses": {"accepted": 3, "running": 2, "completed": 118},
    "oldest_s": {"STAT": 4.2},
    "deliveries": {"stow": {"delivered": 117, "dead": 1}},
    "dead_letters": 1,
}


class WorkerView(BaseModel):
    """A worker that lives: `beat` is its last heartbeat by its own clock, `parts` what it last found."""

    id: str
    host: str
    started: datetime
    beat: datetime
    parts: dict[str, bool]


class Status(BaseModel):
    """Workers, queues and clock. `analyses`: how many are in which state; `oldest_s`: the age of the oldest unfinished
    one in seconds, by priority; `dead_letters` wait for a person: deliveries that were given up, and analyses that kill
    their worker."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    version: str
    now: datetime
    started: datetime
    ready: bool
    parts: dict[str, bool]
    workers: list[WorkerView]
    analyses: dict[str, int]
    oldest_s: dict[str, float]
    deliveries: dict[str, dict[str, int]]
    dead_letters: int


@router.get("/v1/status", response_model=Status, summary="How the server is", openapi_extra=needs(Scope.ANALYSES_READ))
def status(here: Here, by: By) -> Status:
    """The figures are the whole server's, all tenants together; they name nobody's analyses."""
    found = here.service.status(by)
    deliveries: dict[str, dict[str, int]] = {}
    for (channel, state), number in found.deliveries.items():
        deliveries.setdefault(channel.value, {})[state.value] = number
    return Status(
        version=__version__,
        now=found.now,
        started=found.started,
        ready=found.readiness.ready,
        parts=dict(found.readiness.parts),
        workers=[
            WorkerView(id=each.id, host=each.host, started=each.started, beat=each.beat, parts=dict(each.parts))
            for each in found.workers
        ],
        analyses=dict(found.analyses),
        oldest_s=dict(found.oldest_s),
        deliveries=deliveries,
        dead_letters=found.dead_letters,
    )


@router.get(
    "/metrics",
    response_class=Response,
    summary="Figures for Prometheus",
    openapi_extra=needs(Scope.ADMIN),
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(here: Here, by: By) -> Response:
    """As on the metrics port: of this server and of the workers that it brought."""
    here.service.require(by, Scope.ADMIN, "metrics-read")
    return Response(here.metrics(), media_type=CONTENT_TYPE_LATEST)
