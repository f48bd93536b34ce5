"""Pulling a level from Orthanc: each way at several shares of its frames, the way that is chosen, and curl.

Every pull begins with the headers at hand and no pixels, and ends with the frames on disk. The ways take turns, and the
median of a way's pulls counts; a pull whose way was chosen is one more of that way. What pulls cost was learned from
pulls before.
"""

import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

import numpy as np
import pydicom
from prometheus_client import REGISTRY

from gateway.archive import dicomweb_frames, dicomweb_retrieve
from gateway.archive.cache import FrameCache
from gateway.archive.costs import Way
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.protocol import SeriesEntry, Wanted
from tests.benchmarks.rows import Row
from tests.support.orthanc import running_orthanc

SHARES = (0.05, 0.2, 0.5, 1.0)
TURNS = 3
SINGLE_FRAMES = 6
ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def measure(work: Path, slides: dict[str, Path]) -> list[Row]:
    """Rows for the largest level of each slide, by the slide's name."""
    rows: list[Row] = []
    with running_orthanc(work / "orthanc") as orthanc:
        for name, folder in slides.items():
            orthanc.upload(folder)
            bench = _Bench(name, folder, orthanc.address, work / name.replace(" ", "-"))
            rows += bench.rows()
    return rows


@dataclass
class _Pulls:
    """Seconds of each pull of one way, and the bytes of the last."""

    seconds: list[float] = field(default_factory=list)
    received: float = 0.0

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


class _Bench:
    def __init__(self, name: str, folder: Path, address: str, work: Path) -> None:
        files = sorted(folder.glob("*.dcm"), key=lambda file: file.stat().st_size)
        header = pydicom.dcmread(files[-1], stop_before_pixels=True)
        self._sop, self._frames = str(header.SOPInstanceUID), int(header.NumberOfFrames)
        self._smallest = [str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files[:-1]]
        self._size_mb = files[-1].stat().st_size / 1e6
        self._entry = SeriesEntry(str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
        self._archive = DicomWebArchive.from_address(address)
        self._address = address
        self._work = work
        self._label = f"pull from Orthanc, {name} ({self._size_mb:.0f} MB)"

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        self._cache = FrameCache(self._work, 2**34)
        # What an analysis does before it reads a level, and what teaches the archive's costs.
        self._pull(self._wanted(0.05), dict.fromkeys(self._smallest))
        rows.append(Row(f"{self._label}: its headers", self._headers(), "s"))
        self._pull(self._wanted(1.0), {})
        for share in SHARES:
            rows += self._at(share)
        return rows

    def _at(self, share: float) -> list[Row]:
        wanted = self._wanted(share)
        pulls, chosen = {Way.WHOLE: _Pulls(), Way.BATCHED: _Pulls()}, []
        curl_s: list[float] = []
        for _ in range(TURNS):
            for way in pulls:
                with _always(way):
                    self._timed(wanted, pulls)
            chosen.append(self._timed(wanted, pulls))
            if share == 1.0:
                curl_s.append(self._curl())
        chosen_s = statistics.mean(pulls[way].median_s for way in chosen)
        numbers = list(wanted[self._sop] or range(self._frames))
        sample = numbers[:SINGLE_FRAMES]
        with _always(Way.BATCHED), mock.patch.object(dicomweb_frames, "_URL_BYTES", 0):
            single_s, single_bytes, _ = self._pull({self._sop: sample}, {})
        scaled = len(numbers) / len(sample)
        label = f"{self._label}, {share:.0%} of the frames"
        whole, batched = pulls[Way.WHOLE], pulls[Way.BATCHED]
        rows = [
            Row(f"{label}: whole instance, {whole.received / 1e6:.1f} MB", whole.median_s, "s"),
            Row(f"{label}: batched frames, {batched.received / 1e6:.1f} MB", batched.median_s, "s"),
            Row(f"{label}: one frame a request (scaled), {single_bytes * scaled / 1e6:.1f} MB", single_s * scaled, "s"),
            Row(
                f"{label}: chosen, {' and '.join(sorted(set(chosen)))}",
                chosen_s,
                "s",
                "the best way",
                min(whole.median_s, batched.median_s, single_s * scaled) / chosen_s,
                0.9,
            ),
        ]
        if share == 1.0:
            floor = "the same instance by curl"
            ratio = statistics.median(curl_s) / chosen_s
            rows.append(Row(f"{label}: chosen, over curl", self._size_mb / chosen_s, "MB/s", floor, ratio, 0.7))
        return rows

    def _wanted(self, share: float) -> Wanted:
        count = max(1, round(share * self._frames))
        frames = np.linspace(0, self._frames - 1, count).round().astype(int).tolist()
        return {self._sop: frames if count < self._frames else None}

    def _headers(self) -> float:
        self._forget()
        began = time.perf_counter()
        self._archive.fetch(self._entry, self._cache, wanted={})
        return time.perf_counter() - began

    def _pull(self, wanted: Wanted, before: Wanted) -> tuple[float, float, Way]:
        """Seconds, bytes and way of a pull, after the headers and what is wanted `before`."""
        self._headers()
        if before:
            self._archive.fetch(self._entry, self._cache, wanted=before)
        received, began = _received(), time.perf_counter()
        fetched = self._archive.fetch(self._entry, self._cache, wanted=wanted)
        seconds = time.perf_counter() - began
        whole = any(file.name == f"{self._sop}.dcm" for file in fetched.files)
        return seconds, _received() - received, Way.WHOLE if whole else Way.BATCHED

    def _timed(self, wanted: Wanted, pulls: dict[Way, _Pulls]) -> Way:
        """One pull more of the way that it takes."""
        seconds, received, way = self._pull(wanted, {})
        pulls[way].seconds.append(seconds)
        pulls[way].received = received
        return way

    def _forget(self) -> None:
        """Empty the cache but for what was learned."""
        for series in self._work.glob("*/*/"):
            shutil.rmtree(series)

    def _curl(self) -> float:
        parts = urlsplit(self._address)
        path = f"/studies/{self._entry.study}/series/{self._entry.series}/instances/{self._sop}"
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        url = f"http://{parts.hostname}:{parts.port}{parts.path}{path}"
        command = ["curl", "-sf", "-o", str(self._work / "by-curl"), "-u", user, "-H", f"Accept: {ACCEPT}", url]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        return time.perf_counter() - began


@contextmanager
def _always(way: Way) -> Iterator[None]:
    with mock.patch.object(dicomweb_retrieve, "choose", return_value=way):
        yield


def _received() -> float:
    return REGISTRY.get_sample_value("pacs_bytes_total", {"direction": "received"}) or 0.0
