"""Damage to the bytes of one file: flipped bits, wrong lengths and types, cuts at every boundary."""

import struct
from collections.abc import Callable
from random import Random

from tests.fuzz.structure import PIXEL_DATA, Part, parts_of, pixel_data

Damage = Callable[[Random, bytearray], bytearray]
_LENGTHS = (0, 1, 2, 3, 7, 0x7FFE, 0xFFFE, 0xFFFF, 1 << 20, 0x7FFFFFFE, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_VRS = (b"SQ", b"UN", b"OB", b"OW", b"US", b"UL", b"FD", b"AT", b"DS", b"IS", b"UT", b"PN", b"XX", b"\0\0", b"ss")
_META_END = 400


def _flip(rng: Random, data: bytearray, begin: int, end: int, most: int) -> bytearray:
    for _ in range(rng.randint(1, most)):
        data[rng.randrange(begin, max(begin + 1, end))] ^= 1 << rng.randrange(8)
    return data


def _pixels_at(data: bytearray) -> int:
    part = pixel_data(bytes(data))
    return part.start if part else len(data)


def bits_in_preamble(rng: Random, data: bytearray) -> bytearray:
    return _flip(rng, data, 0, min(_META_END, len(data)), 6)


def bits_in_header(rng: Random, data: bytearray) -> bytearray:
    return _flip(rng, data, 132, _pixels_at(data), 40)


def bits_in_offsets(rng: Random, data: bytearray) -> bytearray:
    """The offset tables and the headers of the items."""
    part = pixel_data(bytes(data))
    if part is None:
        return _flip(rng, data, 0, len(data), 4)
    items = [item for item in parts_of(bytes(data)) if not item.vr and item.start >= part.value]
    if not items:
        return _flip(rng, data, part.start, part.value, 4)
    for _ in range(rng.randint(1, 4)):
        item = rng.choice(items[:1] * 3 + items)
        end = min(len(data), item.value + (item.length if item is items[0] else 0))
        data = _flip(rng, data, item.start, max(item.value, end), 2)
    return data


def bits_in_pixels(rng: Random, data: bytearray) -> bytearray:
    begin = _pixels_at(data)
    return _flip(rng, data, min(begin, len(data) - 1), len(data), 200)


def cut_at_boundary(rng: Random, data: bytearray) -> bytearray:
    """The file ends where an element, its value, an item or a field of one begins, or a byte beside."""
    part = rng.choice(parts_of(bytes(data)))
    boundary = rng.choice((part.start, part.start + 4, part.length_at, part.value, part.value + part.length // 2))
    return data[: max(0, min(len(data), boundary + rng.choice((-1, 0, 0, 0, 1))))]


def cut_anywhere(rng: Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(len(data))]


def wrong_length(rng: Random, data: bytearray) -> bytearray:
    part = rng.choice(_some(rng, data))
    length = rng.choice((*_LENGTHS, part.length + 1, part.length + 2, max(0, part.length - 2), len(data)))
    _put(data, part, length)
    return data


def wrong_type(rng: Random, data: bytearray) -> bytearray:
    parts = [part for part in parts_of(bytes(data)) if part.vr]
    for part in rng.sample(parts, min(len(parts), rng.randint(1, 3))):
        data[part.start + 4 : part.start + 6] = rng.choice(_VRS)
    return data


def wrong_tag(rng: Random, data: bytearray) -> bytearray:
    """Tags out of order, of another group, of another item."""
    parts = parts_of(bytes(data))
    for part in rng.sample(parts, min(len(parts), rng.randint(1, 3))):
        data[part.start : part.start + 4] = rng.choice((rng.randbytes(4), rng.choice(parts).tag, PIXEL_DATA))
    return data


def element_twice(rng: Random, data: bytearray) -> bytearray:
    part = rng.choice([part for part in parts_of(bytes(data)) if part.vr and part.length < 1 << 16])
    element = data[part.start : part.value + part.length]
    return data[: part.start] + element * rng.randint(1, 2000) + data[part.start :]


def element_gone(rng: Random, data: bytearray) -> bytearray:
    for part in rng.sample(_some(rng, data), 1):
        if part.length != 0xFFFFFFFF:
            del data[part.start : part.value + part.length]
    return data


def wrong_value(rng: Random, data: bytearray) -> bytearray:
    """A value of the right length that is none of its kind."""
    parts = [part for part in parts_of(bytes(data)) if part.vr and 0 < part.length < 1 << 12]
    for part in rng.sample(parts, min(len(parts), rng.randint(1, 5))):
        filling = rng.choice((b"\xff", b"\0", b"9", b"-", b"\\", b"nan\\inf\\", b"\x1b$B", b"../", rng.randbytes(64)))
        data[part.value : part.value + part.length] = (filling * part.length)[: part.length]
    return data


def no_file(rng: Random, data: bytearray) -> bytearray:
    """Another file under the slide's name: empty, zeros, noise, a preamble alone."""
    size = rng.choice((0, 1, 131, 132, 133, 4096, 1 << 20))
    return bytearray(
        rng.choice((bytes(size), rng.randbytes(size), bytes(128) + b"DICM" + rng.randbytes(size), b"\xff\xd8" * 99))
    )


def zeroed(rng: Random, data: bytearray) -> bytearray:
    """A hole of the disk: blocks of zeros."""
    for _ in range(rng.randint(1, 3)):
        begin = rng.randrange(len(data)) & ~511
        data[begin : begin + 4096] = bytes(len(data[begin : begin + 4096]))
    return data


def offsets_anywhere(rng: Random, data: bytearray) -> bytearray:
    """A basic offset table (or the first items) that points into nothing, backwards, at itself, beyond the file."""
    part = pixel_data(bytes(data))
    items = [item for item in parts_of(bytes(data)) if part and not item.vr and item.start >= part.value]
    if not items or items[0].length == 0:
        return bits_in_offsets(rng, data)
    table = items[0]
    count = table.length // 4
    wild = [rng.choice((0, 1, 7, 8, 0xFFFFFFFF, 0x7FFFFFFF, len(data), rng.randrange(1 << 32))) for _ in range(count)]
    kind = rng.randrange(3)
    if kind == 0:
        wild = sorted(wild)
    elif kind == 1:
        wild[0] = 0
    data[table.value : table.value + 4 * count] = struct.pack(f"<{count}I", *wild)
    return data


def _some(rng: Random, data: bytearray) -> list[Part]:
    """Parts, those of the pixel data as likely as all the others together."""
    parts = parts_of(bytes(data))
    begin = _pixels_at(data)
    late = [part for part in parts if part.start >= begin]
    return late if late and rng.random() < 0.4 else parts


def _put(data: bytearray, part: Part, length: int) -> None:
    size = part.length_bytes
    data[part.length_at : part.value] = (length & ((1 << 8 * size) - 1)).to_bytes(size, "little")


DAMAGES: dict[str, Damage] = {
    function.__name__.replace("_", "-"): function
    for function in (
        bits_in_preamble,
        bits_in_header,
        bits_in_offsets,
        bits_in_pixels,
        cut_at_boundary,
        cut_anywhere,
        wrong_length,
        wrong_type,
        wrong_tag,
        element_twice,
        element_gone,
        wrong_value,
        no_file,
        zeroed,
        offsets_anywhere,
    )
}
