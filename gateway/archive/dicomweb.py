"""A PACS over DICOMweb (PS3.18): QIDO-RS finds, WADO-RS fetches, STOW-RS stores; each has a module of its own."""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from gateway.archive import dicomweb_find, dicomweb_store
from gateway.archive.access import Access
from gateway.archive.breaker import Breaker, breaker_of
from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb_auth import Credentials, Fixed, Tokens, Trust
from gateway.archive.dicomweb_http import Endpoint, Limits, Session, never
from gateway.archive.dicomweb_retrieve import Retrieval
from gateway.archive.protocol import FetchedSeries, FetchProgress, SeriesEntry, SlideQuery, Wanted, no_progress
from gateway.domain.uids import is_uid
from gateway.operations.errors import ArchiveRefused, InvalidInput, InvalidSetting


class DicomWebArchive:
    """An `Archive` behind DICOMweb. Thread-safe: every operation has connections of its own."""

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits | None = None,
        access: Access | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Raises InvalidSetting, also where a file that `access` names cannot be read or is not what it should be."""
        access = access or Access()
        self._endpoint = endpoint
        self._limits = limits or Limits()
        self._trust = Trust(access)
        self._credentials = self._credentials_of(access)
        self._breaker = breaker or breaker_of(endpoint.address)
        self._retrieval = Retrieval()
        if access.needs_tls:
            self._trust.check()

    @classmethod
    def from_address(
        cls,
        address: str,
        limits: Limits | None = None,
        access: Access | None = None,
        breaker: Breaker | None = None,
    ) -> Self:
        """The archive at `dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH`. Raises InvalidSetting."""
        tls = access is not None and access.needs_tls
        return cls(Endpoint.from_address(address, tls=tls), limits, access, breaker)

    def _credentials_of(self, access: Access) -> Credentials:
        if self._endpoint.user is not None and (access.token is not None or access.oauth is not None):
            raise InvalidSetting(
                "The archive's address names a user, and a token is configured too: take the user out of the address, "
                "or unset PATHSERVE_ARCHIVE_TOKEN and PATHSERVE_ARCHIVE_OAUTH_…."
            )
        if access.oauth is not None:
            return Tokens(access.oauth, self._trust.context, self._limits)
        return Fixed(access.token, self._endpoint.user, self._endpoint.password)

    @property
    def address(self) -> str:
        return self._endpoint.address

    def _session(self, cancelled: Callable[[], bool] = never) -> Session:
        plain = self._endpoint.url.startswith("http:")
        # Where TLS is not spoken: a context that trusts nobody, which spares the loading of authorities.
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else self._trust.context()
        return Session(self._endpoint, self._limits, tls, self._credentials, self._breaker, cancelled)

    def probe(self) -> None:
        # A search that matches nothing costs the PACS least, and brings no patient here.
        with self._session() as session:
            if session.listing("probe", "/studies", [("StudyInstanceUID", "2.25.0"), ("limit", "1")]) is None:
                raise ArchiveRefused("There is no DICOMweb service at the archive's address: check its path.")

    def find_series(
        self, study: str, series: Sequence[str] = (), *, cancelled: Callable[[], bool] = never
    ) -> tuple[SeriesEntry, ...]:
        _check_uids(study, *series)
        with self._session(cancelled) as session:
            return dicomweb_find.find_series(session, study, series)

    def search(self, query: SlideQuery) -> tuple[SeriesEntry, ...]:
        with self._session() as session:
            return dicomweb_find.search(session, query)

    def fetch(
        self,
        entry: SeriesEntry,
        cache: FrameCache,
        *,
        wanted: Wanted | None = None,
        progress: FetchProgress = no_progress,
        cancelled: Callable[[], bool] = never,
    ) -> FetchedSeries:
        _check_uids(entry.study, entry.series)
        with self._session(cancelled) as session:
            return self._retrieval.fetch(session, self.address, entry, cache, wanted=wanted, progress=progress)

    def store(self, files: Sequence[Path]) -> None:
        with self._session() as session:
            dicomweb_store.store(session, files)


def _check_uids(*uids: str) -> None:
    for uid in uids:
        if not is_uid(uid):
            raise InvalidInput("The order names a study or series whose UID is not valid: correct the order.")
