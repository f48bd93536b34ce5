"""The exact models of one analysis, fixed when it starts: no version ever changes in the middle of it."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from gateway.analyses.ledger.choices import Choices
from gateway.analyses.protocols import Protocol
from gateway.inference import ModelRepository
from gateway.inference.names import folder_of
from gateway.operations import codec
from gateway.operations.errors import ModelNotLoaded, ModelsUnfit, PathserveError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One version of a model: its folder (Triton's name of it), and the sha256 of its engine and of its card."""

    folder: str
    model: str
    version: str
    engine_sha256: str
    card_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The models of a protocol and the steps of its ensembles, each step before its ensemble.

    `folders`: model of the protocol -> its folder, in the protocol's order.
    """

    folders: Mapping[str, str]
    pins: tuple[Pin, ...]

    @classmethod
    def choose(cls, protocol: Protocol, choices: Choices, repository: ModelRepository) -> Self:
        """What serves now. Raises ModelNotLoaded where there is no such model, ModelRefused, ModelsUnfit."""
        chosen = (_chosen(protocol.alternatives(model), choices, repository) for model in protocol.models)
        pins = cls.of(dict(chosen), repository)
        _demand_fit(pins.folders.values(), repository)
        return pins

    @classmethod
    def of(cls, folders: Mapping[str, str], repository: ModelRepository) -> Self:
        """The pins of these folders as they are now. Raises ModelNotLoaded, ModelRefused."""
        names = [part for name in folders.values() for part in (*repository.contract(name).steps, name)]
        return cls(folders=dict(folders), pins=tuple(_pin(name, repository) for name in dict.fromkeys(names)))

    def hold(self, repository: ModelRepository) -> bool:
        """Whether every pinned folder is still there, and still what it was."""
        try:
            return self.of(self.folders, repository) == self
        except PathserveError:
            return False

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = codec.dump(self)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return codec.load(cls, document)


def serving(model: str, choices: Choices, repository: ModelRepository) -> str:
    """The version of a model that new analyses use: the site's choice, else the lowest that may serve.

    Where none may, it is the lowest there is, which the engine then refuses with the reason. Raises ModelNotLoaded
    where the repository has no version of the model.
    """
    current = choices.current(model)
    if current is not None:
        return current
    left = [version for version in repository.versions(model) if not choices.retired(model, version)]
    if not left:
        raise ModelNotLoaded(f"There is no model {model} in the model repository. Export it, or correct the name.")
    return next((version for version in left if not _falls_short(folder_of(model, version), repository)), left[0])


def _demand_fit(folders: Iterable[str], repository: ModelRepository) -> None:
    """Raise ModelsUnfit where one of these was trained with another encoder, of tiles, cells or text, or another
    detector than the one among these.

    By the weights' digest: the same weights in another precision are the same encoder. Raises ModelNotLoaded,
    ModelRefused.
    """
    cards = [repository.card(folder) for folder in folders]
    by_name = {card.name: card.version for card in cards}
    for card in cards:
        detector = None if card.screening is None else card.screening.detector
        for encoder in (card.encoder, card.text_encoder, detector):
            if encoder is None or encoder.model not in by_name:
                continue
            serves = by_name[encoder.model]
            if serves.weights_sha256 != encoder.weights_sha256:
                raise ModelsUnfit(
                    f"The model {card.name} version {card.version.version} was trained on another {encoder.model} than "
                    f"version {serves.version}, which serves. Promote versions of both that belong together."
                )


def _chosen(models: Sequence[str], choices: Choices, repository: ModelRepository) -> tuple[str, str]:
    """The first of these models that has a version which may serve, and that version's folder; the first one where
    none has. Raises ModelNotLoaded."""
    for model in models:
        with suppress(ModelNotLoaded):
            folder = folder_of(model, serving(model, choices, repository))
            if not _falls_short(folder, repository):
                return model, folder
    return models[0], folder_of(models[0], serving(models[0], choices, repository))


def _falls_short(folder: str, repository: ModelRepository) -> bool:
    """Whether a version's gate says that it may not serve.

    One that cannot be read does not say so: it is refused by name, where passing it over would let a version serve
    that nobody chose.
    """
    try:
        return not repository.gate(folder).approved
    except PathserveError:
        return False


def _pin(folder: str, repository: ModelRepository) -> Pin:
    version = repository.card(folder).version
    return Pin(
        folder=folder,
        model=version.name,
        version=version.version,
        engine_sha256=version.engine_sha256,
        card_sha256=repository.provenance(folder).files["card.json"],
    )
