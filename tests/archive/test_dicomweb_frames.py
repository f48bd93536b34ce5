"""Frames and headers from a PACS that answers oddly: taken where they are what is stored, else the whole instance."""

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

from gateway.archive.cache import FrameCache
from gateway.archive.costs import Costs
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.archive.partial import PartialInstance, is_partial
from gateway.archive.protocol import FetchedSeries, SeriesEntry, Wanted
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    DiskFull,
    InvalidSlide,
    PathserveError,
    SlideNotInArchive,
    TruncatedFile,
)
from tests.archive.costs import frames_are_cheap, frames_are_dear
from tests.support.disk import largest_file
from tests.support.rogue_answers import by_path, describing, hang, reset, retrieving
from tests.support.rogue_pacs import BOUNDARY, SERIES, SOP, STUDY, Answer, Request, RoguePacs, running

LIMITS = Limits(connect_s=1, read_s=0.5, backoff_s=0.01, visible_s=0.2)
ENTRY = SeriesEntry(STUDY, SERIES, 1)
JPEG, LOSSLESS, EXPLICIT = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1"
FRAMES = 12
FRAMES_TYPE = f'multipart/related; type="image/jpeg; transfer-syntax={JPEG}"; boundary={BOUNDARY}'
Part = tuple[int | None, bytes]


def jpeg(frame: int) -> bytes:
    """What begins as baseline JPEG does; each frame another."""
    return (
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xc0\x00\x0b" + bytes([frame]) * 999
    )


def lossless(frame: int) -> bytes:
    return jpeg(frame).replace(b"\xff\xc0", b"\xff\xc3")


def instance(**changed: object) -> bytes:
    """A small image of JPEG frames."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = pydicom.uid.VLWholeSlideMicroscopyImageStorage
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = SOP, STUDY, SERIES
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P0001", "Müller^Jörg", "SM"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = FRAMES, 64, 64
    dataset.SamplesPerPixel, dataset.BitsAllocated = 3, 8
    path = pydicom.Dataset()
    path.OpticalPathIdentifier, path.ICCProfile = "1", b"a profile!"
    dataset.OpticalPathSequence = [path]
    for keyword, value in changed.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = encapsulate([jpeg(frame) for frame in range(FRAMES)])
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEG
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


FILE = instance()
STORED = list(generate_frames(pydicom.dcmread(io.BytesIO(FILE)).PixelData, number_of_frames=FRAMES))


def whole(request: Request) -> None:
    request.answer(200, "application/dicom", FILE)


def numbers(request: Request) -> list[int]:
    """The frames that are asked for, 0-based."""
    return [int(number) - 1 for number in request.path.rpartition("/")[2].split(",")]


def body(
    parts: list[Part], *, kind: str | None = f"image/jpeg; transfer-syntax={JPEG}", end: bool = True, of: str = ""
) -> bytes:
    """A multipart of frames, those with a number saying it, and of which instance they are."""
    out: list[bytes] = []
    for frame, data in parts:
        out.append(f"--{BOUNDARY}\r\n".encode())
        out.append(f"Content-Type: {kind}\r\n".encode() if kind else b"")
        out.append(
            f"Content-Location: http://elsewhere{of}/frames/{frame + 1}\r\n".encode() if frame is not None else b""
        )
        out += [b"\r\n", data, b"\r\n"]
    return b"".join(out) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def sending(
    change: Callable[[list[int]], list[Part]],
    *,
    content_type: str = FRAMES_TYPE,
    kind: str | None = f"image/jpeg; transfer-syntax={JPEG}",
    of: str = "",
) -> Answer:
    """The frames that `change` makes of those asked for."""
    return lambda request: request.answer(200, content_type, body(change(numbers(request)), kind=kind, of=of))


def as_asked(asked: list[int]) -> list[Part]:
    return [(None, STORED[frame]) for frame in asked]


def labelled(asked: list[int]) -> list[Part]:
    return [(frame, STORED[frame]) for frame in asked]


def pacs_with(frames: Answer, metadata: Answer | None = None, stored: Answer = whole) -> RoguePacs:
    return RoguePacs(retrieve=by_path(metadata=metadata or describing(FILE), frames=frames, instance=stored))


def fetch(pacs: RoguePacs, folder: Path, wanted: Wanted) -> FetchedSeries:
    """Headers, then what is wanted, where frames are known to be cheap."""
    cache = FrameCache(folder, 2**30)
    with running(pacs):
        archive = DicomWebArchive.from_address(pacs.address, LIMITS)
        frames_are_cheap(cache, archive.address)
        archive.fetch(ENTRY, cache, wanted={})
        return archive.fetch(ENTRY, cache, wanted=wanted)


def frames_in(fetched: FetchedSeries) -> dict[int, bytes]:
    """The frames that came of the one instance."""
    [file] = fetched.files
    if not is_partial(file):
        dataset = pydicom.dcmread(file)
        return dict(enumerate(generate_frames(dataset.PixelData, number_of_frames=FRAMES)))
    part = PartialInstance(file)
    extents_F2 = part.extents()
    return {
        frame: part.frames_file.read_bytes()[begin:end] for frame, (begin, end) in enumerate(extents_F2) if begin >= 0
    }


def many_attributes() -> bytes:
    """An instance of a hundred attributes in DICOM JSON."""
    return json.dumps({f"0011{number:04X}": {"vr": "LO"} for number in range(100)}).encode()


WANTED = [1, 3, 4, 9]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(sending(as_asked), id="in-the-order-asked"),
        pytest.param(sending(labelled), id="each-with-its-number"),
        pytest.param(sending(lambda asked: labelled(asked)[::-1]), id="another-order-but-numbered"),
        pytest.param(
            sending(as_asked, content_type=f"multipart/related; boundary={BOUNDARY}", kind="image/jpeg"),
            id="no-syntax-stated",
        ),
        pytest.param(
            sending(as_asked, content_type=f"multipart/related; boundary={BOUNDARY}", kind=None), id="no-type-at-all"
        ),
        pytest.param(
            sending(as_asked, kind=f'application/octet-stream; transfer-syntax="{JPEG}"'), id="octets-of-that-syntax"
        ),
    ],
)
def test_frames_that_are_what_is_stored(answer: Answer, tmp_path: Path) -> None:
    pacs = pacs_with(answer)
    fetched = fetch(pacs, tmp_path, {SOP: WANTED})
    assert frames_in(fetched) == {frame: STORED[frame] for frame in WANTED}
    assert pacs.asked("/frames/") == 1
    assert pacs.asked("/frames/2,4,5,10") == 1


def extra(asked: list[int]) -> list[Part]:
    return [*as_asked(asked), (None, STORED[0])]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(retrieving(406, "text/plain", b""), id="406"),
        pytest.param(retrieving(404, "text/plain", b""), id="404"),
        pytest.param(retrieving(414, "text/plain", b""), id="414"),
        pytest.param(retrieving(200, "text/html", b"<html>log in</html>"), id="html"),
        pytest.param(retrieving(200, "application/dicom+json", b"[]"), id="json"),
        pytest.param(retrieving(200, "application/dicom", FILE), id="dicom"),
        pytest.param(retrieving(200, FRAMES_TYPE, f"--{BOUNDARY}--\r\n".encode()), id="no-part"),
        pytest.param(sending(lambda asked: as_asked(asked)[:-1]), id="one-missing"),
        pytest.param(sending(extra), id="one-too-many"),
        pytest.param(sending(lambda asked: [(0, data) for _, data in as_asked(asked)]), id="numbers-not-asked-for"),
        pytest.param(sending(labelled, of="/instances/2.25.9"), id="of-another-instance"),
        pytest.param(sending(lambda asked: labelled(asked[:1]) * (len(asked) + 1)), id="one-number-again-and-again"),
        pytest.param(
            sending(
                lambda asked: [(None, bytes(64 * 64 * 3)) for _ in asked],
                content_type=f'multipart/related; type="application/octet-stream"; boundary={BOUNDARY}',
                kind=f"application/octet-stream; transfer-syntax={EXPLICIT}",
            ),
            id="decompressed",
        ),
        pytest.param(
            sending(
                lambda asked: [(None, bytes(64 * 64 * 3)) for _ in asked],
                content_type=f"multipart/related; boundary={BOUNDARY}",
                kind="application/octet-stream",
            ),
            id="decompressed-unsaid",
        ),
        pytest.param(
            sending(
                lambda asked: [(None, lossless(frame)) for frame in asked],
                kind=f"image/jpeg; transfer-syntax={LOSSLESS}",
            ),
            id="recompressed",
        ),
        pytest.param(
            sending(lambda asked: [(None, lossless(frame)) for frame in asked], kind="image/jpeg"),
            id="recompressed-but-said-to-be-stored",
        ),
        pytest.param(sending(as_asked, kind="text/html"), id="parts-of-html"),
    ],
)
def test_frames_that_are_not_are_never_used(answer: Answer, tmp_path: Path) -> None:
    """The whole instance is pulled instead."""
    pacs = pacs_with(answer)
    [file] = fetch(pacs, tmp_path, {SOP: WANTED}).files
    assert file.read_bytes() == FILE
    assert sorted(path.name for path in file.parent.iterdir()) == [".lock", f"{SOP}.dcm", "series.json"]
    assert pacs.asked("/frames/") <= 6  # every form at once, then one frame alone


def test_an_empty_frame_is_kept_as_such(tmp_path: Path) -> None:
    answer = sending(lambda asked: [(None, b"" if frame == 3 else STORED[frame]) for frame in asked])
    fetched = fetch(pacs_with(answer), tmp_path, {SOP: WANTED})
    assert frames_in(fetched) == {frame: b"" if frame == 3 else STORED[frame] for frame in WANTED}


def breaking_off(after: int, then: Callable[[Request], None] | None = None) -> Answer:
    """Answers that end in the middle of the part after so many, without a word."""

    def answer(request: Request) -> None:
        asked = numbers(request)
        if len(asked) <= after:
            request.answer(200, FRAMES_TYPE, body(as_asked(asked)))
            return
        sent = body(as_asked(asked[: after + 1]), end=False)[:-500]
        request.answer(200, FRAMES_TYPE, sent, length=len(sent) + (10_000 if then else 0))
        if then:
            then(request)

    return answer


@pytest.mark.parametrize("then", [None, reset], ids=["cut", "reset"])
def test_frames_that_came_before_an_answer_broke_off_are_kept(
    then: Callable[[Request], None] | None, tmp_path: Path
) -> None:
    pacs = pacs_with(breaking_off(2, then))
    fetched = fetch(pacs, tmp_path, {SOP: WANTED})
    assert frames_in(fetched) == {frame: STORED[frame] for frame in WANTED}
    assert [path.rpartition("/")[2] for _, path, _ in pacs.requests if "/frames/" in path] == ["2,4,5,10", "5,10"]


def test_what_came_before_silence_is_there_the_next_time(tmp_path: Path) -> None:
    pacs = pacs_with(breaking_off(2, hang))
    began = time.monotonic()
    with pytest.raises(ArchiveUnavailable):
        fetch(pacs, tmp_path, {SOP: WANTED})
    assert time.monotonic() - began < 15
    well = pacs_with(sending(as_asked))
    well.port = pacs.port
    cache = FrameCache(tmp_path, 2**30)
    [header] = cache.of_archive(f"dicomweb://127.0.0.1:{pacs.port}/dicom-web").rglob("*.header.dcm")
    assert PartialInstance(header).missing(WANTED) == [4, 9]


def test_frames_that_come_too_slowly_count_as_dear(tmp_path: Path) -> None:
    """The next try of the step knows that they took longer than our patience."""
    pacs = pacs_with(hang)
    with pytest.raises(ArchiveUnavailable):
        fetch(pacs, tmp_path, {SOP: WANTED})
    costs = Costs.read(FrameCache(tmp_path, 2**30).of_archive(_address(pacs)) / "costs.json")
    assert max(sample.wait_s for sample in costs.samples if sample.frames and not sample.sent_bytes) >= LIMITS.read_s


def _address(pacs: RoguePacs) -> str:
    return f"dicomweb://127.0.0.1:{pacs.port}/dicom-web"


def test_disk_full(tmp_path: Path) -> None:
    pacs = pacs_with(sending(as_asked))
    with running(pacs):
        cache = FrameCache(tmp_path, 2**30)
        frames_are_cheap(cache, _address(pacs))
        archive = DicomWebArchive.from_address(pacs.address, LIMITS)
        [header] = archive.fetch(ENTRY, cache, wanted={}).files
        with largest_file(3_000), pytest.raises(DiskFull):
            archive.fetch(ENTRY, cache, wanted={SOP: WANTED})
    assert PartialInstance(header).missing(WANTED) == WANTED
    assert not list(header.parent.glob(".*.part"))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(hang, ArchiveUnavailable, id="hangs"),
        pytest.param(reset, ArchiveUnavailable, id="resets"),
        pytest.param(retrieving(503, "text/html", b""), ArchiveUnavailable, id="503"),
        pytest.param(retrieving(401, "text/html", b""), ArchiveRefused, id="401"),
        pytest.param(retrieving(302, "", b"", Location="http://127.0.0.1:1/"), ArchiveRefused, id="redirect"),
    ],
)
def test_a_pacs_that_fails_says_so(answer: Answer, error: type[PathserveError], tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(error):
        fetch(pacs_with(answer), tmp_path, {SOP: WANTED})
    assert time.monotonic() - began < 15


def test_a_part_without_end(tmp_path: Path) -> None:
    """It is given up after what no frame exceeds, in little memory, and the whole instance is pulled."""

    def endless(request: Request) -> None:
        request.answer(200, FRAMES_TYPE, body([(None, b"\xff\xd8")], end=False)[:-2], length=10**12)
        while True:
            request.wfile.write(bytes(1 << 20))

    [file] = fetch(pacs_with(endless), tmp_path, {SOP: [1]}).files
    assert file.read_bytes() == FILE


def test_the_form_and_the_number_that_the_pacs_takes_are_remembered(tmp_path: Path) -> None:
    def choosy(request: Request) -> None:
        if f"transfer-syntax={JPEG}" not in request.headers["Accept"] or len(numbers(request)) > 3:
            request.answer(400, "text/plain", b"")
        else:
            sending(as_asked)(request)

    pacs = pacs_with(choosy)
    fetched = fetch(pacs, tmp_path, {SOP: list(range(FRAMES))})
    assert frames_in(fetched) == dict(enumerate(STORED))
    asked = [path.rpartition("/")[2] for _, path, _ in pacs.requests if "/frames/" in path]
    assert asked == [
        *[",".join(str(frame + 1) for frame in range(FRAMES))] * 3,  # in every form
        *["1"] * 2,  # the second form is right; so many at once were not
        *[str(frame + 1) for frame in range(1, FRAMES)],
    ]


def test_one_request_names_no_more_than_a_proxy_takes(tmp_path: Path) -> None:
    frames = 5000
    pacs = pacs_with(
        lambda request: request.answer(200, FRAMES_TYPE, body([(None, jpeg(0)) for _ in numbers(request)])),
        metadata=describing(FILE, NumberOfFrames=frames),
    )
    fetched = fetch(pacs, tmp_path, {SOP: list(range(frames))})
    assert PartialInstance(fetched.files[0]).missing(range(frames)) == []
    paths = [path for _, path, _ in pacs.requests if "/frames/" in path]
    assert all(len(path) < 8000 for path in paths)
    assert len(paths) == 4


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(retrieving(404, "text/html", b"<html>"), id="404"),
        pytest.param(retrieving(406, "", b""), id="406"),
        pytest.param(retrieving(200, "text/html", b"<html>log in</html>"), id="html"),
        pytest.param(retrieving(200, "application/dicom+json", b'[{"0008'), id="half-a-document"),
        pytest.param(retrieving(200, "application/dicom+json", b"[" * 200_000), id="deeply-nested"),
        pytest.param(retrieving(200, "application/dicom+json", b'{"a": 1}'), id="no-array"),
        pytest.param(retrieving(200, "application/dicom+json", b"[]"), id="nothing"),
        pytest.param(
            retrieving(200, "application/dicom+json", b"[" + b" " * (33 * 2**20) + b"]"), id="more-than-is-read-at-once"
        ),
        pytest.param(
            retrieving(
                200,
                "application/dicom+json",
                json.dumps(
                    [{"00080018": {"vr": "UI", "Value": [SOP]}, "00280008": {"vr": "IS", "Value": [{}]}}]
                ).encode(),
            ),
            id="a-value-that-is-none",
        ),
        pytest.param(
            retrieving(200, "application/dicom+json", b"[" + b",".join([many_attributes()] * 3001) + b"]"),
            id="more-attributes-than-a-slide-has",
        ),
    ],
)
def test_without_usable_metadata_the_instances_own_head_serves(metadata: Answer, tmp_path: Path) -> None:
    pacs = pacs_with(sending(as_asked), metadata=metadata)
    fetched = fetch(pacs, tmp_path, {SOP: WANTED})
    header = pydicom.dcmread(fetched.files[0])
    assert str(header.PatientName) == "Müller^Jörg"
    assert header.OpticalPathSequence[0].ICCProfile == b"a profile!"
    assert frames_in(fetched) == {frame: STORED[frame] for frame in WANTED}


@pytest.mark.parametrize("element", [b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff", b""], ids=["items", "elements"])
def test_a_head_without_end(element: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.archive.dicomweb_headers.HEAD_READS", 1000)
    at = FILE.index(b"\x08\x00\x60\x00CS")
    more = b"\xfe\xff\x00\xe0\0\0\0\0" if element else b"\x08\x00\x42\x00CS\0\0"
    endless = FILE[:at] + element + more * 10_000
    pacs = pacs_with(sending(as_asked), metadata=retrieving(404, "text/plain", b""))
    pacs.retrieve = by_path(instance=lambda request: request.answer(200, "application/dicom", endless))
    with running(pacs), pytest.raises(TruncatedFile, match="damaged"):
        DicomWebArchive.from_address(pacs.address, LIMITS).fetch(ENTRY, FrameCache(tmp_path, 2**30), wanted={})


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param({"SOPInstanceUID": "../../../escaped"}, ArchiveRefused, id="no-uid"),
        pytest.param({"SOPInstanceUID": ""}, ArchiveRefused, id="no-uid-at-all"),
        pytest.param({"SeriesInstanceUID": "2.25.404"}, ArchiveRefused, id="another-series"),
        pytest.param({"StudyInstanceUID": "2.25.404"}, ArchiveRefused, id="another-study"),
        pytest.param({"NumberOfFrames": 2**31 - 1}, InvalidSlide, id="absurd-number-of-frames"),
        pytest.param({"NumberOfFrames": -1}, InvalidSlide, id="negative-number-of-frames"),
        pytest.param({"Modality": "SR"}, SlideNotInArchive, id="no-image"),
    ],
)
def test_metadata_that_cannot_be_true(said: dict[str, object], error: type[PathserveError], tmp_path: Path) -> None:
    pacs = pacs_with(sending(as_asked), metadata=describing(FILE, **said))
    with running(pacs), pytest.raises(error) as caught:
        DicomWebArchive.from_address(pacs.address, LIMITS).fetch(
            ENTRY, FrameCache(tmp_path / "cache", 2**30), wanted={}
        )
    assert "escaped" not in caught.value.detail
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_urls_of_bulk_data_are_not_followed(tmp_path: Path) -> None:
    """The profile is taken from the instance itself, whatever the metadata name."""
    with running(RoguePacs()) as elsewhere:
        [described] = json.loads(_answered(describing(FILE)))
        described["00480105"]["Value"][0]["00282000"] = {
            "vr": "OB",
            "BulkDataURI": f"http://127.0.0.1:{elsewhere.port}/dicom-web/bulk/1",
        }
        pacs = pacs_with(
            sending(as_asked),
            metadata=retrieving(200, "application/dicom+json", json.dumps([described]).encode()),
        )
        fetched = fetch(pacs, tmp_path, {SOP: WANTED})
        assert elsewhere.requests == []
    assert pydicom.dcmread(fetched.files[0]).OpticalPathSequence[0].ICCProfile == b"a profile!"


def _answered(answer: Answer) -> bytes:
    class Kept:
        body = b""

        def answer(self, status: int, content_type: str, body: bytes) -> None:
            self.body = body

    kept = Kept()
    answer(kept)  # type: ignore[arg-type]
    return kept.body


def test_what_the_archive_says_of_its_syntax_spares_a_request(tmp_path: Path) -> None:
    pacs = pacs_with(sending(as_asked), metadata=describing(FILE, AvailableTransferSyntaxUID=JPEG))
    fetch(pacs, tmp_path, {SOP: WANTED})
    assert [path for _, path, _ in pacs.requests if path.endswith(SOP)] == []


def test_the_header_of_today_wins_over_the_stored_one(tmp_path: Path) -> None:
    pacs = pacs_with(sending(as_asked), metadata=describing(FILE, PatientName="Corrected^Name"))
    header = pydicom.dcmread(fetch(pacs, tmp_path, {SOP: WANTED}).files[0])
    assert str(header.PatientName) == "Corrected^Name"


@pytest.mark.parametrize(("keyword", "said"), [("PatientID", "P0002"), ("AccessionNumber", "A1")])
def test_a_stored_instance_of_another_patient_than_the_archive_says_is_never_used(
    keyword: str, said: str, tmp_path: Path
) -> None:
    """A PACS may have corrected or added it, and give the instance as it came: then its frames serve alone."""
    pacs = pacs_with(sending(as_asked), metadata=describing(FILE, **{keyword: said}))
    cache = FrameCache(tmp_path, 2**30)
    with running(pacs):
        archive = DicomWebArchive.from_address(pacs.address, LIMITS)
        frames_are_dear(cache, archive.address)
        archive.fetch(ENTRY, cache, wanted={})
        fetched = archive.fetch(ENTRY, cache, wanted={SOP: WANTED})
        assert pydicom.dcmread(fetched.files[0])[keyword].value == said
        assert list(frames_in(fetched)) == WANTED
        asked = pacs.asked(f"/instances/{SOP}")
        archive.fetch(ENTRY, cache, wanted={SOP: [*WANTED, 11]})
        assert pacs.asked(f"/instances/{SOP}") == asked + 1  # known: the whole instance is not asked for again
        pacs.retrieve = by_path(metadata=describing(FILE, **{keyword: said}), instance=whole)
        with pytest.raises(ArchiveRefused, match="something else of the patient"):
            archive.fetch(ENTRY, cache, wanted={SOP: None})
    assert sorted(path.name for path in fetched.files[0].parent.glob("*.dcm")) == [f"{SOP}.header.dcm"]


SMALLER = "2.25.1004"


def smaller() -> bytes:
    """An image of the same series, of one native frame and with another profile."""
    dataset = pydicom.dcmread(io.BytesIO(FILE))
    dataset.SOPInstanceUID = SMALLER
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 1, 8, 8
    dataset.OpticalPathSequence[0].ICCProfile = b"another!"
    dataset.PixelData = bytes(8 * 8 * 3)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    dataset.file_meta.MediaStorageSOPInstanceUID = SMALLER
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_what_is_presumed_of_a_header_is_put_right_before_its_frames_come(tmp_path: Path) -> None:
    """Only the smallest image is asked what metadata leave out, until the pixels of another are wanted."""
    files = {SOP: FILE, SMALLER: smaller()}
    described = json.loads(_answered(describing(*files.values())))
    for entry in described:
        del entry["00480105"]["Value"][0]["00282000"]["InlineBinary"]
        entry["00480105"]["Value"][0]["00282000"]["BulkDataURI"] = "http://elsewhere/bulk"
    pacs = pacs_with(
        sending(as_asked),
        metadata=retrieving(200, "application/dicom+json", json.dumps(described).encode()),
        stored=lambda request: request.answer(200, "application/dicom", files[request.path.rpartition("/")[2]]),
    )

    def headers(fetched: FetchedSeries) -> list[tuple[str, bytes]]:
        found = [pydicom.dcmread(file) for file in fetched.files]
        return [(str(one.file_meta.TransferSyntaxUID), one.OpticalPathSequence[0].ICCProfile) for one in found]

    cache, entry = FrameCache(tmp_path, 2**30), SeriesEntry(STUDY, SERIES, 2)
    with running(pacs):
        archive = DicomWebArchive.from_address(pacs.address, LIMITS)
        frames_are_cheap(cache, _address(pacs))
        assert headers(archive.fetch(entry, cache, wanted={})) == [(EXPLICIT, b"another!")] * 2
        assert [path.rpartition("/")[2] for _, path, _ in pacs.requests] == ["metadata", SMALLER]
        fetched = archive.fetch(entry, cache, wanted={SOP: WANTED})
    assert headers(fetched) == [(JPEG, b"a profile!"), (EXPLICIT, b"another!")]
    assert [path.rpartition("/")[2] for _, path, _ in pacs.requests[2:]] == [SOP, "2,4,5,10"]
    assert PartialInstance(fetched.files[0]).missing(range(FRAMES)) == [0, 2, 5, 6, 7, 8, 10, 11]


def test_per_frame_groups_come_from_the_instance_itself(tmp_path: Path) -> None:
    """In metadata they can be a hundred times as long as the frames' positions are."""
    groups = []
    for frame in range(FRAMES):
        position, group = pydicom.Dataset(), pydicom.Dataset()
        position.ColumnPositionInTotalImagePixelMatrix = frame * 64 + 1
        position.RowPositionInTotalImagePixelMatrix = 1
        group.PlanePositionSlideSequence = [position]
        groups.append(group)
    sparse = instance(PerFrameFunctionalGroupsSequence=groups)
    stored = retrieving(200, "application/dicom", sparse)
    pacs = pacs_with(sending(as_asked), metadata=describing(sparse), stored=stored)
    header = pydicom.dcmread(fetch(pacs, tmp_path, {SOP: WANTED}).files[0])
    assert header.PerFrameFunctionalGroupsSequence == pydicom.Sequence(groups)
    assert len([path for _, path, _ in pacs.requests if path.endswith(SOP)]) == 1


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """Each killed pull leaves a cache that is right, and that the next one goes on from."""
    slow = threading.Event()
    slow.set()

    def frames(request: Request) -> None:
        whole = body(as_asked(numbers(request)))
        request.answer(200, FRAMES_TYPE, b"", length=len(whole))
        for start in range(0, len(whole), 400):
            request.wfile.write(whole[start : start + 400])
            if slow.is_set():
                time.sleep(0.02)

    pacs = pacs_with(frames)
    with running(pacs):
        cache = FrameCache(tmp_path, 2**30)
        frames_are_cheap(cache, _address(pacs))
        program = (
            "import sys\nfrom pathlib import Path\nfrom gateway.archive import open_archive\n"
            "from gateway.archive.cache import FrameCache\nfrom gateway.archive.protocol import SeriesEntry\n"
            f"archive, cache = open_archive({pacs.address!r}), FrameCache(Path({str(tmp_path)!r}), 2**30)\n"
            f"entry = SeriesEntry({STUDY!r}, {SERIES!r}, 1)\nprint('ready', flush=True)\n"
            "archive.fetch(entry, cache, wanted={})\n"
            f"for frame in range({FRAMES}):\n    archive.fetch(entry, cache, wanted={{{SOP!r}: [frame]}})\n"
        )
        for pause_s in (0.02, 0.15, 0.4):
            child = subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
            )
            with child:
                assert child.stdout is not None
                child.stdout.readline()
                time.sleep(pause_s)
                child.kill()
        asked = pacs.asked("/frames/")
        slow.clear()
        archive = DicomWebArchive.from_address(pacs.address, LIMITS)
        fetched = archive.fetch(ENTRY, cache, wanted={SOP: None})
    assert frames_in(fetched) == dict(enumerate(STORED))
    assert asked > 0
    assert pacs.asked("/frames/") == asked + 1  # in one request all that was missing
    names = sorted(path.name for path in fetched.files[0].parent.iterdir())
    assert names == [".lock", f"{SOP}.frames", f"{SOP}.header.dcm", f"{SOP}.index", "series.json"]
