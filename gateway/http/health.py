"""`/livez` and `/readyz`: open to everybody, so they name parts and nothing else."""

from typing import Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict

from gateway.http.context import Here
from gateway.http.routing import Router

router = Router(tags=["health"])

_OPEN: dict[str, Any] = {"security": []}


class Alive(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"alive": True}]})

    alive: bool


class Ready(BaseModel):
    """Whether an order would be worked on now, and which part is missing.

    `refused` names the models that should serve and may not, a later version as `NAME-vVERSION`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ready": False,
                    "parts": {"database": True, "worker": True, "inference": True, "archive": False},
                    "refused": [],
                }
            ]
        }
    )

    ready: bool
    parts: dict[str, bool]
    refused: list[str]


@router.get("/livez", response_model=Alive, summary="The process lives", openapi_extra=_OPEN)
async def livez() -> Alive:
    # Never in a thread: it must answer while all of them wait for the database.
    return Alive(alive=True)


@router.get(
    "/readyz",
    response_model=Ready,
    summary="The server is ready",
    openapi_extra=_OPEN,
    responses={503: {"model": Ready, "description": "A part is missing"}},
)
def readyz(here: Here, response: Response) -> Ready:
    found = here.service.living.readiness()
    if not found.ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return Ready(ready=found.ready, parts=dict(found.parts), refused=list(found.refused))
