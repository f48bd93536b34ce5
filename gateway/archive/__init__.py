"""DICOM in and out behind one `Archive` protocol."""

from pathlib import Path

from gateway.archive.access import Access
from gateway.archive.folder import FolderArchive
from gateway.archive.protocol import Archive, FetchedSeries, FetchProgress, SeriesEntry, SlideQuery, Wanted, no_progress
from gateway.operations.errors import InvalidSetting

__all__ = [
    "Access",
    "Archive",
    "FetchProgress",
    "FetchedSeries",
    "FolderArchive",
    "SeriesEntry",
    "SlideQuery",
    "Wanted",
    "no_progress",
    "open_archive",
]


def open_archive(address: str, access: Access | None = None) -> Archive:
    """The archive at `folder:DIR` or `dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH`. Raises InvalidSetting.

    `access` (none = an empty one) is for DICOMweb: our tokens and certificates, and the authorities trusted.
    """
    if address.startswith("folder:") and (folder := address.removeprefix("folder:")):
        try:
            return FolderArchive(Path(folder))
        except RuntimeError:  # what pathlib raises for a home folder that is none
            raise InvalidSetting("The archive's folder begins with ~, but there is no such home folder.") from None
    if address.startswith("dicomweb://"):
        # Imported here so that work on local folders does not load the HTTP client.
        from gateway.archive.dicomweb import DicomWebArchive

        return DicomWebArchive.from_address(address, access=access)
    raise InvalidSetting("The archive's address is not known. Write folder:DIR or dicomweb://HOST:PORT/PATH.")
