"""Which model folders a worker has loaded, and why: what serves, what is wished for, what analyses still use."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from gateway.analyses.ledger.choices import Choices, Decision
from gateway.analyses.pins import Pins, serving
from gateway.analyses.protocols import PROTOCOLS
from gateway.inference import ModelRepository, ModelStatus
from gateway.inference.names import folder_of, split_folder
from gateway.inference.sidecars import demand_approved
from gateway.operations.errors import PathserveError


class ModelState(StrEnum):
    """One version of a model, as a site sees it. `refused`: it should serve, and may not."""

    SERVING = "serving"
    PENDING = "pending"
    REFUSED = "refused"
    DRAINING = "draining"
    STANDBY = "standby"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be loaded. An ensemble names its steps' exact versions, so a step has no choice of its own.

    `current`: model -> folder that serves; `wishes`: folder -> the promotion that asks for it; `draining`: folders that
    analyses in flight are pinned to; `steps`: folder -> the folders of its steps.
    """

    choices: Choices
    current: Mapping[str, str]
    wishes: Mapping[str, Decision]
    draining: tuple[str, ...]
    steps: Mapping[str, tuple[str, ...]]

    @classmethod
    def now(cls, choices: Choices, pinned: Iterable[Mapping[str, Any]], repository: ModelRepository) -> Self:
        """What the site's choices, the analyses in flight and the repository ask for at this moment."""
        steps = {folder: _steps(folder, repository) for folder in repository.folders}
        versions = {model: _serving(model, choices, repository) for model in _chosen(repository, steps)}
        wishes = [wish for model in choices.models if (wish := choices.pending(model)) is not None]
        pins = [pin for document in pinned for pin in Pins.from_json(document).pins]
        return cls(
            choices=choices,
            current={model: folder_of(model, version) for model, version in versions.items() if version is not None},
            wishes={folder_of(wish.model, wish.version): wish for wish in wishes},
            draining=tuple(dict.fromkeys(pin.folder for pin in pins)),
            steps=steps,
        )

    @property
    def folders(self) -> tuple[str, ...]:
        """All of it, each once, a step before its ensemble."""
        asked = (*self.current.values(), *self.wishes)
        return tuple(dict.fromkeys((*(part for folder in asked for part in self.parts(folder)), *self.draining)))

    @property
    def initial(self) -> Mapping[str, str]:
        """What serves without anybody's decision."""
        return {
            model: folder
            for model, folder in self.current.items()
            if self.choices.current(model) is None and self.choices.pending(model) is None
        }

    @property
    def wished(self) -> frozenset[str]:
        return frozenset(part for folder in self.wishes for part in self.parts(folder))

    @property
    def serving(self) -> frozenset[str]:
        return frozenset(part for folder in self.current.values() for part in self.parts(folder))

    def parts(self, folder: str) -> tuple[str, ...]:
        """The steps of a folder and the folder itself."""
        return (*self.steps.get(folder, ()), folder)


def step_of(model: str, repository: ModelRepository) -> str | None:
    """The ensemble that has versions of a model as its steps, where no protocol asks for the model itself."""
    if any(model in protocol.all_models for protocol in PROTOCOLS.values()):
        return None
    for folder in repository.folders:
        if any(_model(step) == model for step in _steps(folder, repository)):
            return _model(folder)
    return None


def listed(
    wanted: Wanted, statuses: Mapping[str, ModelStatus], trouble: str | None, repository: ModelRepository
) -> tuple[dict[str, Any], ...]:
    """Every version of every model, JSON-ready: name, version, ready, reason, state, folder, target, precision.

    `trouble` is the reason where no engine is open.
    """
    folders = {*repository.folders, *wanted.folders}
    return tuple(
        _item(folder, wanted, statuses.get(folder), trouble, repository)
        for folder in sorted(folders, key=lambda name: (_model(name), int(_version(name))))
    )


def _item(
    folder: str, wanted: Wanted, status: ModelStatus | None, trouble: str | None, repository: ModelRepository
) -> dict[str, Any]:
    state, reason = _state(folder, wanted, status, trouble, repository)
    gate = None
    with suppress(PathserveError):
        gate = repository.gate(folder)
    return {
        "name": _model(folder),
        "version": _version(folder),
        "ready": state is ModelState.SERVING or (state is ModelState.DRAINING and reason is None),
        "reason": reason,
        "state": state.value,
        "folder": folder,
        "target": gate.target if gate else None,
        "precision": gate.precision if gate else None,
    }


def _state(
    folder: str, wanted: Wanted, status: ModelStatus | None, trouble: str | None, repository: ModelRepository
) -> tuple[ModelState, str | None]:
    refusal = wanted.choices.refused(_model(folder))
    if folder in wanted.serving:
        if status is None:
            return ModelState.PENDING, trouble or "It is being loaded."
        return (ModelState.SERVING, None) if status.ready else (ModelState.REFUSED, status.reason)
    if folder in wanted.wished:
        return (
            ModelState.PENDING,
            trouble or "It is being loaded and proven; the version before serves.",
        )
    if refusal is not None and refusal.version == _version(folder):
        return ModelState.REFUSED, refusal.reason
    if folder in wanted.draining:
        if status is None:
            return ModelState.DRAINING, trouble or "It is being loaded."
        return ModelState.DRAINING, None if status.ready else status.reason
    if wanted.choices.retired(_model(folder), _version(folder)):
        return ModelState.RETIRED, "It was retired."
    try:
        demand_approved(folder, repository.gate(folder))
    except PathserveError as error:
        return ModelState.STANDBY, error.detail
    ensemble = step_of(_model(folder), repository)
    return ModelState.STANDBY, f"It does not serve; promote {f'a version of {ensemble} with it' if ensemble else 'it'}."


def _chosen(repository: ModelRepository, steps: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The models that have a choice of version: all but those that only ensembles use, as their steps."""
    only_steps = {_model(step) for names in steps.values() for step in names}
    only_steps -= {model for protocol in PROTOCOLS.values() for model in protocol.all_models}
    return tuple(model for model in repository.models if model not in only_steps)


def _serving(model: str, choices: Choices, repository: ModelRepository) -> str | None:
    try:
        return serving(model, choices, repository)
    except PathserveError:
        return None


def _steps(folder: str, repository: ModelRepository) -> tuple[str, ...]:
    """The steps of a folder; none where it cannot be read, which the engine then says."""
    try:
        return repository.contract(folder).steps
    except PathserveError:
        return ()


def _model(folder: str) -> str:
    return _split(folder)[0]


def _version(folder: str) -> str:
    return _split(folder)[1]


def _split(folder: str) -> tuple[str, str]:
    found = split_folder(folder)
    assert found is not None, folder
    return found
