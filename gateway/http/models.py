"""`/v1/models` and `/v1/protocols`: what this server can do now."""

from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.analyses.protocols import PROTOCOLS
from gateway.http.context import Here

router = APIRouter(prefix="/v1", tags=["models"])


class ModelView(BaseModel):
    """One model of the repository; `reason` says why it is not ready."""

    name: str
    version: str | None
    ready: bool
    reason: str | None


class Models(BaseModel):
    items: list[ModelView]


class SettingView(BaseModel):
    """One setting that an order may change."""

    default: float | None
    least: float
    most: float
    meaning: str


class ProtocolView(BaseModel):
    """One protocol with the models it needs."""

    name: str
    title: str
    models: list[str]
    settings: dict[str, SettingView]


class Protocols(BaseModel):
    items: list[ProtocolView]


@router.get("/models", summary="The models and whether they are ready")
def models(here: Here) -> Models:
    worker = here.ledger.worker()
    if worker is not None and worker.alive(datetime.now(UTC)) and worker.models:
        return Models(items=[ModelView.model_validate(each) for each in worker.models])
    repository = here.settings.model_repository
    names = sorted(path.parent.name for path in repository.glob("*/card.json")) if repository.is_dir() else []
    reason = "No worker has loaded this model yet."
    return Models(items=[ModelView(name=name, version=None, ready=False, reason=reason) for name in names])


@router.get("/protocols", summary="The protocols an order may ask for")
def protocols() -> Protocols:
    return Protocols(
        items=[
            ProtocolView(
                name=each.name,
                title=each.title,
                models=list(each.models),
                settings={
                    name: SettingView(default=spec.default, least=spec.least, most=spec.most, meaning=spec.meaning)
                    for name, spec in each.settings.items()
                },
            )
            for each in PROTOCOLS.values()
        ]
    )
