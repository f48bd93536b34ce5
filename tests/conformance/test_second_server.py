"""A second DICOMweb server, of other authors than Orthanc's, whole instances only: found, fetched, stored, compared."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest

from gateway.archive import Archive, FolderArchive, SeriesEntry, SlideQuery, open_archive
from gateway.archive.cache import FrameCache
from gateway.operations.errors import ArchiveRefused, SlideNotInArchive
from gateway.slides import Slide
from tests.support.orthanc import free_port
from tests.support.processes import end

_START_S = 30.0
_CONFIGURATION = """\
ae: {{ae_title: [SECOND], port: {dimse}, dump_ds: false}}
log: {{version: 1, disable_existing_loggers: false, root: {{level: WARNING}}}}
components:
  Database: {{'on': true, db_name: pacs.db, mode: rwc, uri: false}}
  Devices: {{'on': true}}
  PACS: {{'on': true}}
  FileStorage: {{'on': true, storage_dir: {files}}}
  HttpServer: {{'on': true, host: 127.0.0.1, port: {http}}}
  DICOMWeb: {{'on': true, prefix: /dicomweb, max_part_size: 268435456}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """tiny_pacs with tiny_pacs_dicomweb, empty."""
    path = os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")))
    program = shutil.which("tiny-pacs", path=path)
    if program is None:
        pytest.skip("oracle not installed: tiny-pacs[dicomweb], a second DICOMweb server")
    folder = tmp_path_factory.mktemp("second")
    (folder / "files").mkdir()
    http = free_port()
    text = _CONFIGURATION.format(dimse=free_port(), http=http, files=folder / "files")
    (folder / "config.yaml").write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "run", "-c", "config.yaml"], cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        until = time.monotonic() + _START_S
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{http}/dicomweb/studies", trust_env=False)
                break
            except httpx.TransportError:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < until, "the second server does not answer"
                time.sleep(0.1)
        yield open_archive(f"dicomweb://127.0.0.1:{http}/dicomweb")
    finally:
        end(process)


@pytest.fixture(scope="module")
def entry(server: Archive, cmu_slide: Path) -> SeriesEntry:
    """The committed slide, stored there by us."""
    server.probe()
    server.store(sorted(cmu_slide.glob("*.dcm")))
    [entry] = FolderArchive(cmu_slide).entries()
    return entry


def test_what_was_stored_is_found(server: Archive, entry: SeriesEntry, cmu_slide: Path) -> None:
    header = pydicom.dcmread(next(cmu_slide.glob("*.dcm")), stop_before_pixels=True)
    for found in (
        server.find_series(entry.study),
        server.find_series(entry.study, (entry.series,)),
        server.search(SlideQuery(accession=header.AccessionNumber)),
        server.search(SlideQuery(study=entry.study, series=entry.series)),
    ):
        assert [(one.study, one.series) for one in found] == [(entry.study, entry.series)]
    with pytest.raises(SlideNotInArchive):
        server.find_series("2.25.1")


def test_headers_alone_or_all_of_it_is_fetched(
    server: Archive, entry: SeriesEntry, cmu_slide: Path, tmp_path: Path
) -> None:
    cache = FrameCache(tmp_path, 1 << 30)
    with Slide.open(sorted(cmu_slide.glob("*.dcm"))) as there:
        expected, pixels = there.levels, there.thumbnail().tobytes()
    with Slide.open(server.fetch(entry, cache, wanted={}).files) as slide:
        assert slide.levels == expected
    with Slide.open(server.fetch(entry, cache).files) as slide:
        assert slide.thumbnail().tobytes() == pixels


def test_an_object_of_other_content_is_refused_and_the_same_is_not(
    server: Archive, entry: SeriesEntry, cmu_slide: Path, tmp_path: Path
) -> None:
    file = sorted(cmu_slide.glob("*.dcm"))[0]
    server.store([file])
    other = pydicom.dcmread(file)
    other.ImageComments = "another object under the same UID"
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(ArchiveRefused):
        server.store([tmp_path / "other.dcm"])
