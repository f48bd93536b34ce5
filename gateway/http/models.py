"""`/v1/models` and `/v1/protocols`: what this server can do now."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from gateway.domain.principal import Scope
from gateway.http.context import By, Here
from gateway.http.routing import Router, needs

router = Router(prefix="/v1", tags=["models"])

_MODEL: dict[str, Any] = {
    "name": "tissue_classification",
    "version": "1",
    "ready": False,
    "reason": "No worker has loaded this model yet.",
    "state": "pending",
    "folder": "tissue_classification",
    "target": "onnx",
    "precision": "fp32",
}


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
    """Every version that serves, or should; with `versions=all` the others too."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_MODEL]}]})

    items: list[ModelView]


class SettingView(BaseModel):
    """One setting of a protocol; `default` null is what the model's card says."""

    default: float | None
    least: float
    most: float
    meaning: str


class ProtocolView(BaseModel):
    """One protocol with the models it needs, and the `card.json` of each (null where it has none that can be read).

    A card says what its model is for (`intended_use`), its labels, operating points and digests; its schema is
    `model_repository/card.schema.json`.
    """

    name: str
    title: str
    models: list[str]
    settings: dict[str, SettingView]
    cards: dict[str, dict[str, Any] | None]


class Protocols(BaseModel):
    """The protocols that an order may name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "name": "tissue-classification",
                            "title": "What tissue is where on an H&E slide",
                            "models": ["tissue_classification"],
                            "settings": {
                                "tissue.min_share": {
                                    "default": 0.25,
                                    "least": 0.01,
                                    "most": 1.0,
                                    "meaning": "least share of a tile under tissue to read it",
                                }
                            },
                            "cards": {"tissue_classification": {"name": "tissue_classification", "version": "1"}},
                        }
                    ]
                }
            ]
        }
    )

    items: list[ProtocolView]


Versions = Annotated[
    Literal["active", "all"], Query(description="`all`: also those that stand by and those that were retired")
]


@router.get(
    "/models",
    response_model=Models,
    summary="The models and whether they are ready",
    openapi_extra=needs(Scope.MODELS_READ),
)
def models(here: Here, by: By, versions: Versions = "active") -> Models:
    found = here.service.models(by, every=versions == "all")
    return Models(items=[ModelView.model_validate(asdict(each)) for each in found])


@router.get(
    "/protocols",
    response_model=Protocols,
    summary="The protocols an order may ask for, and their models' cards",
    openapi_extra=needs(Scope.MODELS_READ),
)
def protocols(here: Here, by: By) -> Protocols:
    return Protocols(
        items=[
            ProtocolView(
                name=each.protocol.name,
                title=each.protocol.title,
                models=list(each.protocol.models),
                settings={
                    name: SettingView(default=spec.default, least=spec.least, most=spec.most, meaning=spec.meaning)
                    for name, spec in each.protocol.settings.items()
                },
                cards={name: None if card is None else dict(card) for name, card in each.cards.items()},
            )
            for each in here.service.protocols(by)
        ]
    )
