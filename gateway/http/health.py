"""`/livez` and `/readyz`: open to everybody, so they name parts and nothing else."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from gateway.http.context import Here
from gateway.operations.errors import PathserveError

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    alive: bool


class Ready(BaseModel):
    """Whether an order would be worked on now, and which part is missing.

    `refused` names the models that should serve and may not, a later version as `NAME-vVERSION`.
    """

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
        worker = here.worker()
        parts["database"] = True
        if worker is not None:
            parts["worker"] = True
            parts |= {name: bool(passes) for name, passes in worker.parts.items()}
            refused = sorted(str(each["folder"]) for each in worker.models if each.get("state") == "refused")
    except PathserveError:
        # The parts say it; why is in the log.
        pass
    ready = all(parts.values())
    response.status_code = 200 if ready else 503
    return Ready(ready=ready, parts=parts, refused=refused)
