"""`/livez` and `/readyz`: open to everybody, so they name parts and nothing else."""

from datetime import UTC, datetime

from fastapi import APIRouter, Response
from pydantic import BaseModel

from gateway.http.context import Here
from gateway.operations.errors import PathserveError

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    alive: bool


class Ready(BaseModel):
    """Whether an order would be worked on now, and which part is missing; `refused` names models that may not serve."""

    ready: bool
    parts: dict[str, bool]
    refused: list[str]


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="The process lives")
async def livez() -> Alive:
    # Never in a thread: it must answer while all of them wait for the database.
    return Alive(alive=True)


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="The server is ready",
    responses={503: {"model": Ready, "description": "A part is missing"}},
)
def readyz(here: Here, response: Response) -> Ready:
    parts = {"database": False, "worker": False, "inference": False, "archive": False}
    refused: list[str] = []
    try:
        worker = here.ledger.worker()
        parts["database"] = True
        # A heartbeat from before this process began may be that of a worker that was killed together with the last one.
        if worker is not None and worker.beat >= here.started and worker.alive(datetime.now(UTC)):
            parts["worker"] = True
            parts |= {name: bool(passes) for name, passes in worker.parts.items()}
            refused = sorted(str(each["name"]) for each in worker.models if not each["ready"])
    except PathserveError:
        # The parts say it; why is in the log.
        pass
    ready = all(parts.values())
    response.status_code = 200 if ready else 503
    return Ready(ready=ready, parts=parts, refused=refused)
