"""What is frozen when a study begins: the software, the models, the operating point, the settings, the sites' states.

Digested as it lies on disk. Nothing of it is ever changed: what must change is another study.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

from gateway import __version__
from gateway.analyses.ledger import AnalysisQuery, Ledger
from gateway.analyses.pins import Pins
from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.screening_result import operating_point
from gateway.analyses.sites import SiteStore, signed_state
from gateway.domain.model import ModelCard, ModelVersion
from gateway.domain.order import Order
from gateway.inference import ModelRepository
from gateway.operations import codec
from gateway.operations.audit.canonical import canonical
from gateway.operations.errors import InvalidInput, ModelRefused
from gateway.operations.settings import Settings
from gateway.slides.site_state import SiteStateInvalid, Source

FORMAT = "pathserve-study-1"
PROTOCOLS = ("cervical-screening",)
"""Those whose answers a reference standard can be held against."""
RESAMPLES, SEED = 1000, 2026
"""Of the bootstrap."""
Centres = Literal["clinical", "composed"]
"""Clinical: orders in the ledger. Composed: folders that `pathserve analyze` wrote of composed slides, no patient's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenModel:
    """One model, or step of an ensemble: its folder, the sha256 of its card, and its version with all its digests."""

    folder: str
    card_sha256: str
    version: ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSite:
    """A site whose signed state is in use. digest: sha256 of the state's bytes."""

    site: str
    version: int
    verdict: str
    digest: str
    signed_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """What a study was registered with.

    `by` answers for it, `user` is the account. `abnormal_from`: the least 1 - p(NILM) of an abnormal slide. `changes`:
    the settings that every order must have; `settings`: all of the protocol with these. A site that is not among
    `sites` is not commissioned. `after`: the number, in the ledger, of the last analysis that was accepted before.
    `patient_key`: drawn at random (32 bytes, hexadecimal); the journal calls patients by it, and nothing prints it.
    """

    format: str
    name: str
    title: str
    tenant: str
    protocol: str
    centres: Centres
    created: datetime
    by: str
    user: str
    software: str
    models: tuple[FrozenModel, ...]
    operating_point: str
    operating_point_origin: str
    abnormal_from: float
    changes: tuple[tuple[str, str], ...]
    settings: Mapping[str, float | None]
    settings_sha256: str
    sites: tuple[FrozenSite, ...]
    after: int
    patient_key: str
    resamples: int
    seed: int

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return codec.dumps(self).encode()

    @property
    def digest(self) -> str:
        """sha256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def composed(self) -> bool:
        return self.centres == "composed"

    def shown(self) -> dict[str, Any]:
        """JSON-ready, without the key of its patients: what may be printed."""
        said: dict[str, Any] = codec.dump(self)
        del said["patient_key"]
        return said

    def site(self, name: str) -> FrozenSite | None:
        """The frozen state of a site; None where it is not commissioned."""
        return next((each for each in self.sites if each.site == name), None)

    @classmethod
    def frozen(
        cls,
        settings: Settings,
        ledger: Ledger,
        *,
        name: str,
        title: str,
        tenant: str,
        protocol: str,
        centres: Centres,
        changes: tuple[tuple[str, str], ...],
        by: str,
        user: str,
        time: datetime,
    ) -> Self:
        """All that answers now. Raises UnknownProtocol, InvalidInput, InvalidSetting, ModelNotLoaded, ModelRefused,
        ModelsUnfit, SiteStateInvalid (a site's file is damaged), StateError."""
        asked = protocol_named(protocol)
        if protocol not in PROTOCOLS:
            raise InvalidInput(f"A study can be made of {', '.join(PROTOCOLS)}, not of {protocol}.")
        order = Order(protocol=protocol, specimens=(), settings=tuple(sorted(changes)))
        options = options_of(asked, order)
        repository = ModelRepository(settings.model_repository)
        pins = Pins.choose(asked, ledger.choices.read(), repository)
        card = repository.card([*pins.folders.values()][-1])
        point = operating_point(card, options)
        last = ledger.page(tenant, AnalysisQuery(), 1).items
        return cls(
            format=FORMAT,
            name=name,
            title=title,
            tenant=tenant,
            protocol=protocol,
            centres=centres,
            created=time,
            by=by,
            user=user,
            software=__version__,
            models=tuple(
                FrozenModel(folder=pin.folder, card_sha256=pin.card_sha256, version=repository.card(pin.folder).version)
                for pin in pins.pins
            ),
            operating_point=point.name,
            operating_point_origin=point.origin,
            abnormal_from=float(point.min_probability),
            changes=order.settings,
            settings=numbers(options),
            settings_sha256=settings_digest(options),
            sites=_sites(settings, card),
            after=last[0].number if last and centres == "clinical" else 0,
            patient_key=secrets.token_hex(32),
            resamples=RESAMPLES,
            seed=SEED,
        )


def settings_digest(options: Mapping[str, float | None]) -> str:
    """sha256 of a protocol's settings, all of them, in canonical JSON."""
    return hashlib.sha256(canonical(numbers(options)).encode()).hexdigest()


def numbers(options: Mapping[str, float | None]) -> dict[str, float | None]:
    """The same values, in one way of writing: 8000.0 for 8000."""
    return {name: None if value is None else float(value) for name, value in options.items()}


def _sites(settings: Settings, card: ModelCard) -> tuple[FrozenSite, ...]:
    """The states that the slide model's analyses use now. Raises ModelRefused."""
    source = Source.of(card.screening)
    if source is None:
        raise ModelRefused(
            f"The card of {card.version.name} does not say what sites are held against. Promote another."
        )
    store, found = SiteStore(settings.state), []
    for site in store.sites():
        usable = any(version.usable for version in store.versions(site))
        try:
            signed = signed_state(settings.state, site, source) if usable else None
        except SiteStateInvalid:  # all that are signed were fitted to another model: not commissioned for this one
            continue
        if signed is not None:
            state = signed.state
            found.append(
                FrozenSite(
                    site=site,
                    version=state.version,
                    verdict=state.verdict,
                    digest=state.digest,
                    signed_by=signed.signature.by,
                )
            )
    return tuple(found)
