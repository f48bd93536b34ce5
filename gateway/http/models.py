"""`/v1/models` and `/v1/protocols`: what this server can do now."""

import re
from typing import Annotated, Literal

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
    if worker is not None and worker.models:
        found = [ModelView.model_validate(each) for each in worker.models]
    else:
        found = _not_loaded(here)
    return Models(items=[each for each in found if versions == "all" or each.state not in ("standby", "retired")])


def _not_loaded(here: Context) -> list[ModelView]:
    """What is known without a worker: the models of the repository, and the versions that were chosen.

    By names alone: what reads the repository brings numpy and gRPC, which this process does without.
    """
    names = {path.parent.name.partition("-")[0] for path in here.settings.model_repository.glob("*/card.json")}
    choices = here.ledger.choices.read()
    versions = {name: choices.current(name) for name in sorted(names) if re.fullmatch(r"[A-Za-z0-9_]+", name)}
    return [
        ModelView(
            name=name,
            version=version,
            ready=False,
            reason="No worker has loaded this model yet.",
            state="pending",
            folder=name if version in (None, "1") else f"{name}-v{version}",
            target=None,
            precision=None,
        )
        for name, version in versions.items()
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
