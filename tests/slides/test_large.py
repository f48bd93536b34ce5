"""A sparse slide of 100,000 frames: seconds and memory to open it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.filewriter import dcmwrite

from tests.slides.made import header, place, write

FRAMES = 100_000
SIDE = 320

# In a process of its own: the peak of resident memory belongs to a process.
OPEN = """
import sys, time
from pathlib import Path
from gateway.slides import Slide
def peak_mb():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024
before, begin = peak_mb(), time.process_time()
with Slide.open([Path(sys.argv[1])]) as slide:
    assert (slide.image(0).frame_at_RC >= 0).sum() == 100_000
    assert slide.image(0).frame_at_RC[312, 159] == 99_999
print(time.process_time() - begin, peak_mb() - before)
"""


@pytest.fixture(scope="module", params=["defined", "undefined"])
def large(request, tmp_path_factory) -> Path:
    """Frames of 4 × 4 pixels, native; per-frame groups with defined or undefined lengths, made of one's bytes."""
    folder = tmp_path_factory.mktemp("large")
    one = header((SIDE * 4, SIDE * 4), (4, 4), 1)
    place(one, [(0x01010101, 0x02020202)], z_um=[1.0], paths=["1"])
    sequence = one["PerFrameFunctionalGroupsSequence"]
    if request.param == "undefined":
        undefined(sequence)
    del one.PerFrameFunctionalGroupsSequence
    only = type(one)()
    only.add(sequence)
    path = folder / "groups"
    dcmwrite(path, only, implicit_vr=False, little_endian=True)
    item = path.read_bytes()[12:]
    if request.param == "undefined":
        item = item[:-8]
    numbers = np.arange(FRAMES)
    column, row = (1 + 4 * values for values in (numbers % SIDE, numbers // SIDE))
    items = np.frombuffer(item, np.uint8)[None].repeat(FRAMES, axis=0)
    for marker, values in ((b"\x01\x01\x01\x01", column), (b"\x02\x02\x02\x02", row)):
        at = item.index(marker)
        items[:, at : at + 4] = values.astype("<i4")[:, None].view(np.uint8).reshape(FRAMES, 4)
    one.NumberOfFrames = FRAMES
    file = write(folder / "slide.dcm", one, [b"\0" * 48])
    data = file.read_bytes()
    pixel_data = data.index(b"\xe0\x7f\x10\x00OB\0\0")
    groups = items.tobytes()
    length = (2**32 - 1 if request.param == "undefined" else len(groups)).to_bytes(4, "little")
    end = b"\xfe\xff\xdd\xe0\0\0\0\0" if request.param == "undefined" else b""
    with file.open("wb") as out:
        out.write(data[:pixel_data] + b"\x00\x52\x30\x92SQ\0\0" + length + groups + end)
        out.write(b"\xe0\x7f\x10\x00OB\0\0" + (48 * FRAMES).to_bytes(4, "little"))
        out.truncate(out.tell() + 48 * FRAMES)
    return file


def undefined(sequence) -> None:
    sequence.is_undefined_length = True
    for item in sequence.value:
        item.is_undefined_length_sequence_item = True
        for element in item:
            if element.VR == "SQ":
                undefined(element)


def test_a_hundred_thousand_sparse_frames(large):
    command = [sys.executable, "-c", OPEN, str(large)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    seconds, megabytes = (float(value) for value in run.stdout.split())
    print(f"{seconds:.2f} s of CPU, {megabytes:.0f} MB more")
    assert seconds < 12
    assert megabytes < 150
