"""`pathserve models …`: what there is, what serves, and a person's decisions about it."""

import json
import os
import pwd
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from gateway.analyses.command_ledger import command_ledger
from gateway.analyses.ledger import Ledger, WorkerStatus
from gateway.analyses.ledger.choices import Action, Choices, Decision, Outcome
from gateway.analyses.pins import serving
from gateway.analyses.replacement import changes
from gateway.analyses.served import Wanted, listed, step_of
from gateway.inference import ModelRepository
from gateway.inference.names import folder_of
from gateway.operations.columns import print_columns
from gateway.operations.errors import Conflict, ModelRefused, NotFound, PathserveError
from gateway.operations.settings import Settings

SETTLE_S = 180.0
"""How long a worker may take to load a version and replay its golden inputs."""
_LOOK_S = 0.1
_TOLD_S = 5.0


def list_models(*, as_json: bool) -> int:
    """Print every version of every model. Raises StateError."""
    with _site() as site:
        items = site.items()
    if as_json:
        print(json.dumps({"items": items}, indent=2))
        return 0
    columns = ("name", "version", "state", "target", "precision", "reason")
    print_columns(
        [("MODEL", *map(str.upper, columns[1:])), *([str(each[key] or "-") for key in columns] for each in items)]
    )
    return 0


def show(model: str, version: str | None) -> int:
    """Print one version of a model (the one that serves): card, gates, digests, and what was decided of the model.

    Raises NotFound, StateError.
    """
    with _site() as site:
        site.know(model, version)
        chosen = version or serving(model, site.choices, site.repository)
        item = site.item(model, chosen)
        lines = [(key, str(item[key])) for key in ("folder", "state", "ready", "target", "precision") if item[key]]
        lines += [("reason", item["reason"])] if item["reason"] else []
        lines += _described(site.repository, item["folder"])
        lines += [(f"decision {each.number}", _sentence(each)) for each in site.choices.of(model)]
    print_columns([("model", model), ("version", chosen), *lines])
    return 0


def promote(model: str, version: str, *, retired: bool) -> int:
    """Let a version serve new analyses, once it has proven itself in the worker; print what came of it.

    Raises NotFound, Conflict, ModelRefused, StateError, DiskFull.
    """
    with _site() as site:
        site.know(model, version)
        site.demand_choice(model)
        if site.choices.retired(model, version) and not retired:
            raise Conflict(
                f"The version {version} of {model} was retired. Promote another one, or this one with --retired."
            )
        pending = site.choices.pending(model)
        if site.current(model) == version and pending is None:
            raise Conflict(f"The version {version} of {model} serves already; there is nothing to promote.")
        return site.replace(model, version, Action.PROMOTE)


def rollback(model: str) -> int:
    """Let the version serve again that served before. Raises NotFound, Conflict, ModelRefused, StateError, DiskFull."""
    with _site() as site:
        site.know(model, None)
        site.demand_choice(model)
        pending = site.choices.pending(model)
        if pending is not None:
            raise Conflict(
                f"The promotion of version {pending.version} of {model} is not settled yet. Wait for it, or promote "
                "another version in its place."
            )
        before = site.choices.before(model)
        if before is None:
            raise Conflict(f"No other version of {model} served before, or it was retired; promote one by its number.")
        return site.replace(model, before, Action.ROLLBACK)


def retire(model: str, version: str) -> int:
    """Take a version out of the choice; its files stay. Raises NotFound, Conflict, StateError, DiskFull."""
    with _site() as site:
        site.know(model, version)
        folder = folder_of(model, version)
        wanted = site.wanted()
        # Steps of an ensemble too, of which the ledger knows nothing.
        if folder in wanted.serving:
            raise Conflict(f"The version {version} of {model} serves now; promote another one before it is retired.")
        if folder in wanted.wished:
            raise Conflict(f"The version {version} of {model} was just promoted; promote another one in its place.")
        if site.choices.retired(model, version):
            raise Conflict(f"The version {version} of {model} is retired already.")
        site.ledger.choices.retire(model, version, _who())
    print(f"{model} version {version} is retired. Analyses that began with it end with it.")
    return 0


class _Site:
    """The ledger and the repository of this site, as they are now."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.ledger = ledger
        self.repository = ModelRepository(settings.model_repository)
        self.choices: Choices = ledger.choices.read()

    def wanted(self) -> Wanted:
        return Wanted.now(self.choices, self.ledger.pinned(), self.repository)

    def items(self) -> list[dict[str, Any]]:
        """As `GET /v1/models?versions=all` has them where a worker runs; else what the next one would load."""
        worker = self._worker()
        if worker is not None and worker.models:
            return [dict(each) for each in worker.models]
        return self._unloaded("No worker runs; it is loaded at the next start.")

    def item(self, model: str, version: str) -> dict[str, Any]:
        """Of `items`, the one of a version that is known."""
        # The worker looks at the repository now and then: it may not have seen a new version.
        items = [*self.items(), *self._unloaded("The worker has not seen it yet.")]
        return next(each for each in items if (each["name"], each["version"]) == (model, version))

    def _unloaded(self, reason: str) -> list[dict[str, Any]]:
        return list(listed(self.wanted(), {}, reason, self.repository))

    def current(self, model: str) -> str | None:
        folder = self.wanted().current.get(model)
        return None if folder is None else serving(model, self.choices, self.repository)

    def know(self, model: str, version: str | None) -> None:
        """Raise NotFound where the repository has no such model, or no such version of it."""
        versions = self.repository.versions(model)
        if not versions:
            known = ", ".join(self.repository.models) or "none"
            raise NotFound(f"There is no model {model} in the model repository. Known models: {known}.")
        if version is not None and version not in versions:
            raise NotFound(f"There is no version {version} of {model}. Known versions: {', '.join(versions)}.")

    def demand_choice(self, model: str) -> None:
        """Raise Conflict for a model that serves only as an ensemble's step."""
        ensemble = step_of(model, self.repository)
        if ensemble is not None:
            raise Conflict(
                f"The model {model} serves as a step of {ensemble}, each version of which names the exact versions of "
                f"its steps. Promote a version of {ensemble} instead."
            )

    def replace(self, model: str, version: str, action: Action) -> int:
        """Check, say what changes, write the wish down, and wait for what the worker says of it."""
        self.repository.check(folder_of(model, version))
        now = self.current(model)
        if now is not None and now != version:
            for sentence in changes(self.repository, folder_of(model, now), folder_of(model, version)):
                print(sentence)
            # What a rollback returns to, where no worker has run yet.
            self.ledger.choices.note_initial(model, now, "pathserve models")
        wish = self.ledger.choices.wish(model, version, action, _who())
        if self._worker() is None:
            print(f"Noted. No worker runs; {model} version {version} is loaded and proven at the next start.")
            return 0
        settled = self._settled(wish)
        if settled.outcome is Outcome.REFUSED:
            raise ModelRefused(f"{settled.reason} The version before goes on serving.")
        print(f"{model} version {version} serves new analyses.")
        return 0

    def _settled(self, wish: Decision) -> Decision:
        until = time.monotonic() + SETTLE_S
        while (found := self.ledger.choices.get(wish.number)).outcome is Outcome.PENDING:
            if time.monotonic() > until or self._worker() is None:
                raise Conflict(
                    f"The worker has not settled it within {SETTLE_S:.0f} s, or it ended. The wish stands: see "
                    "`pathserve models list`, or promote another version in its place."
                )
            time.sleep(_LOOK_S)
        self._until_told(folder_of(wish.model, wish.version), found.outcome)
        return found

    def _until_told(self, folder: str, outcome: Outcome) -> None:
        """Wait until `GET /v1/models` says it as well: it repeats the worker's heartbeat."""
        until = time.monotonic() + _TOLD_S
        while time.monotonic() < until:
            worker = self.ledger.workers.latest()
            states = {each["folder"]: each["state"] for each in worker.models} if worker is not None else {}
            if states.get(folder, outcome.value) == outcome.value:
                return
            time.sleep(_LOOK_S)

    def _worker(self) -> WorkerStatus | None:
        """The worker that lives now."""
        worker = self.ledger.workers.latest()
        return worker if worker is not None and worker.alive(datetime.now(UTC)) else None


@contextmanager
def _site() -> Iterator[_Site]:
    with command_ledger("models") as (settings, ledger):
        yield _Site(settings, ledger)


def _described(repository: ModelRepository, folder: str) -> Sequence[tuple[str, str]]:
    """Of card and gate what a person decides by; nothing where they cannot be read (the reason says so)."""
    try:
        card, gate = repository.card(folder), repository.gate(folder)
        not_executed = repository.document(folder).get("not_executed")
    except PathserveError:
        return ()
    labels = [label.code.display + ("" if label.supported else " (not given)") for label in card.labels]
    lines = [
        ("title", card.title),
        ("kind", card.kind),
        ("tiles", f"{card.tile_px} px at {card.mpp:g} µm"),
        ("labels", ", ".join(labels)),
        *(
            (f"operating point {point.name}", f"{point.min_probability:g} ± {point.band:g} ({point.origin})")
            for point in card.operating_points
        ),
        ("intended use", card.intended_use.statement),
        ("gate", gate.state + (" (reduced)" if gate.reduced else "")),
        *((f"gate {each.gate}", _gate(each.passed, each.figures, each.reason)) for each in gate.gates),
        ("engine sha256", card.version.engine_sha256),
        ("weights sha256", card.version.weights_sha256),
        ("recipe", f"{card.version.recipe} (sha256 {card.version.recipe_sha256})"),
    ]
    return [*lines, ("not executed", str(not_executed))] if not_executed else lines


def _gate(passed: bool | None, figures: Any, reason: str | None) -> str:
    if passed is None:
        return f"not run: {reason}"
    shown = ", ".join(f"{key} {value}" for key, value in figures.items() if isinstance(value, int | float | str))
    return ("passed" if passed else "FAILED") + (f": {shown}" if shown else "")


def _sentence(decision: Decision) -> str:
    what = f"{decision.time:%Y-%m-%d %H:%M} UTC, {decision.who}: {decision.action.value} version {decision.version}"
    return f"{what}, {decision.outcome.value}" + (f" ({decision.reason})" if decision.reason else "")


def _who() -> str:
    # By the process's user: what the environment says of a name, anybody may have written.
    try:
        return pwd.getpwuid(os.getuid()).pw_name[:128]
    except KeyError:  # a user without a name
        return f"user {os.getuid()}"
