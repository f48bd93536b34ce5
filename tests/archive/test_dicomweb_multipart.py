"""Multipart bodies read as a stream, however they are cut."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.archive.dicomweb_multipart import MediaType, MultipartError, first_part, media_type, parts

EDGE = "b0undary"


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The data cut at the given sizes, again and again."""
    start, turn = 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        yield data[start : start + size]
        start, turn = start + size, turn + 1


def multipart(content: bytes) -> bytes:
    return b"--b0undary\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b0undary--\r\n"


# Content that looks like the edge as often as possible.
CONTENT = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"--", b"\r\n--", b"\r\n--b0und", b"x", b"\x00"])).map(
    b"".join
)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(CONTENT, SIZES)
def test_any_content_in_any_pieces(content: bytes, sizes: list[int]) -> None:
    part = first_part(pieces(multipart(content), sizes), EDGE)
    assert part.headers == {"content-type": "application/dicom"}
    assert b"".join(part.body) == content


@given(CONTENT, SIZES, st.data())
def test_cut_anywhere(content: bytes, sizes: list[int], data: st.DataObject) -> None:
    whole = multipart(content)
    kept = data.draw(st.integers(0, len(whole) - len("--\r\n") - 1))
    with pytest.raises(MultipartError):
        b"".join(first_part(pieces(whole[:kept], sizes), EDGE).body)


@given(st.binary(max_size=3000), SIZES)
def test_rubbish(data: bytes, sizes: list[int]) -> None:
    with pytest.raises(MultipartError):
        b"".join(first_part(pieces(data, sizes), EDGE).body)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 200_000 + multipart(b"content"),
        b"--b0undary" + b"x" * 200_000,
        b"--b0undary\r\n" + b"A: b\r\n" * 50_000 + b"\r\ncontent",
        b"--b0undary\r\n" + b"A" * 200_000,
    ],
    ids=["preamble", "delimiter-line", "many-headers", "long-header"],
)
def test_what_comes_before_the_content_is_bounded(data: bytes) -> None:
    taken = 0

    def counted() -> Iterator[bytes]:
        nonlocal taken
        for piece in pieces(data, [1000]):
            taken += len(piece)
            yield piece

    with pytest.raises(MultipartError):
        first_part(counted(), EDGE)
    assert taken < 100_000


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "²", "many", ""])
def test_a_length_that_is_none(length: str) -> None:
    data = b"--b0undary\r\nContent-Length: " + length.encode() + b"\r\n\r\ncontent\r\n--b0undary--"
    assert b"".join(first_part([data], EDGE).body) == b"content"


def test_a_boundary_beyond_ascii() -> None:
    with pytest.raises(MultipartError):
        first_part([multipart(b"content")], "\N{SNOWMAN}")


def test_content_is_given_as_it_comes() -> None:
    content = bytes(10_000_000)
    part = first_part(pieces(multipart(content), [65_536]), EDGE)
    sizes = [len(piece) for piece in part.body]
    assert sum(sizes) == len(content)
    assert max(sizes) < 140_000


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/dicom", MediaType("application/dicom", None)),
        ("Multipart/Related; boundary=abc", MediaType("multipart/related", "abc")),
        ('multipart/related;boundary="a b;c";type="application/dicom"', MediaType("multipart/related", "a b;c")),
        (
            'multipart/related; type="image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"; boundary=x-y',
            MediaType("multipart/related", "x-y"),
        ),
        ("multipart/related; boundary=", MediaType("multipart/related", None)),
        ('multipart/related; boundary="unclosed', MediaType("multipart/related", "unclosed")),
        ("", MediaType("", None)),
    ],
)
def test_media_types(content_type: str, expected: MediaType) -> None:
    assert media_type(content_type) == expected


BODIES = st.lists(CONTENT, min_size=1, max_size=5)


@given(BODIES, SIZES, st.booleans())
def test_many_parts_in_any_pieces(bodies: list[bytes], sizes: list[int], terse: bool) -> None:
    whole = b""
    for body in bodies:
        headers = b"Content-Location: /frames/1\r\n"
        # Some servers leave out the line break between the headers of an empty part and the delimiter.
        whole += b"--b0undary\r\n" + headers + b"\r\n" + body + (b"" if terse and not body else b"\r\n")
    found = parts(pieces(whole + b"--b0undary--", sizes), EDGE)
    assert [(b"".join(part.body), part.headers) for part in found] == [
        (body, {"content-location": "/frames/1"}) for body in bodies
    ]


@given(BODIES, SIZES, st.data())
def test_parts_before_a_cut_are_whole(bodies: list[bytes], sizes: list[int], data: st.DataObject) -> None:
    whole = b"".join(b"--b0undary\r\nA: b\r\n\r\n" + body + b"\r\n" for body in bodies) + b"--b0undary--"
    kept = data.draw(st.integers(0, len(whole) - 3))
    came: list[bytes] = []

    def read() -> None:
        came.extend(b"".join(part.body) for part in parts(pieces(whole[:kept], sizes), EDGE))

    with pytest.raises(MultipartError):
        read()
    assert came == bodies[: len(came)]


def test_a_part_that_is_not_read_is_passed_over() -> None:
    whole = b"".join(b"--b0undary\r\nA: b\r\n\r\n" + body + b"\r\n" for body in (b"one", b"two")) + b"--b0undary--"
    assert [b"".join(part.body) for part in list(parts([whole], EDGE))] == [b"", b""]
    assert len(list(parts([whole], EDGE))) == 2


def test_the_last_part_without_closing_edge_but_with_its_length() -> None:
    whole = b"--b0undary\r\nA: b\r\n\r\none\r\n--b0undary\r\nContent-Length: 3\r\n\r\ntwo"
    for end in (b"", b"\r\n"):
        assert [b"".join(part.body) for part in parts([whole + end], EDGE)] == [b"one", b"two"]
