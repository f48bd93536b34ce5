"""`/v1/models` and `/v1/protocols`: what this server can do now."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from gateway.analyses.protocols import PROTOCOLS
from gateway.http.context import Context, Here

router = APIRouter(prefix="/v1", tags=["models"])


class ModelView(BaseModel):
    """One version of a model; `reason` says why it is not ready.

    `state`: serving (new analyses use it), pending (it is being loaded), refused (it should serve and may not),
    draining (analyses that began before use it), standby (it can be promoted), retired. `folder` is its name in Triton.
    """

    name: str
    version: str | None
    ready: bool
    reason: str | None
    state: Literal["serving", "pending", "refused", "draining", "standby", "retired"]
    folder: str
    target: str | None
    precision: str | None


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


Versions = Annotated[
    Literal["active", "all"], Query(description="`all`: also those that stand by and those that were retired")
]


@router.get("/models", summary="The models and whether they are ready")
def models(here: Here, versions: Versions = "active") -> Models:
    worker = here.worker()
    found = _served(worker.models) if worker is not None and worker.models else _not_loaded(here)
    return Models(items=[each for each in found if versions == "all" or each.state not in ("standby", "retired")])


def _served(models: Sequence[Mapping[str, Any]]) -> list[ModelView]:
    return [ModelView.model_validate(each) for each in models]


def _not_loaded(here: Context) -> list[ModelView]:
    """What is known without a worker: the models of the repository, and the versions that were chosen."""
    repository = here.settings.model_repository
    folders = (path.parent.name for path in repository.glob("*/card.json")) if repository.is_dir() else ()
    choices = here.ledger.choices.read()
    return [
        ModelView(
            name=name,
            version=choices.current(name),
            ready=False,
            reason="No worker has loaded this model yet.",
            state="pending",
            folder=name,
            target=None,
            precision=None,
        )
        for name in sorted({folder.partition("-")[0] for folder in folders})
    ]


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
