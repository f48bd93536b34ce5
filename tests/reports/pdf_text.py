"""The text of a PDF as typst writes it: object streams aside, by the fonts' ToUnicode maps (PDF 32000-1 9.10.3)."""

import re
import zlib

_OBJECT = re.compile(rb"(?:^|\n)(\d+) 0 obj\n(.*?)\nendobj", re.DOTALL)
_LITERAL = rb"(?:[^\\()]|\\.)*"
for _ in range(4):  # balanced parentheses need no escape (7.3.4.2)
    _LITERAL = rb"(?:[^\\()]|\\.|\(" + _LITERAL + rb"\))*"
# A string that belongs to a key (a language, an alternative text) is none that is shown.
_SHOWN = re.compile(rb"/[A-Z]\w*\(" + _LITERAL + rb"\)|/(f\d+) [\d.]+ Tf|\((" + _LITERAL + rb")\)", re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}


def pages(pdf: bytes) -> list[str]:
    """The characters of each page in the order in which they are drawn, without any space."""
    objects = {int(number): body for number, body in _OBJECT.findall(pdf)}
    (tree,) = (body for body in objects.values() if b"/Type/Pages" in body)
    kids = re.search(rb"/Kids\[(.*?)\]", tree)
    assert kids
    return ["".join(_page(objects, objects[int(kid)]).split()) for kid in re.findall(rb"(\d+) 0 R", kids[1])]


def _page(objects: dict[int, bytes], page: bytes) -> str:
    resources = _referenced(objects, "Resources", page)
    fonts = {
        name: _characters(objects, objects[int(number)])
        for name, number in re.findall(rb"/(f\d+) (\d+) 0 R", resources)
    }
    shown, font = [], {}
    for name, literal in _SHOWN.findall(_stream(_referenced(objects, "Contents", page))):
        if name:
            font = fonts[name]
        elif literal:
            data = _ESCAPE.sub(_unescaped, literal)
            shown += [font[data[at : at + 2]] for at in range(0, len(data), 2)]
    return "".join(shown)


def _characters(objects: dict[int, bytes], font: bytes) -> dict[bytes, str]:
    pairs = re.findall(rb"<([0-9A-F]{4})> <([0-9A-F]+)>\n", _stream(_referenced(objects, "ToUnicode", font)))
    return {bytes.fromhex(code.decode()): bytes.fromhex(text.decode()).decode("utf-16-be") for code, text in pairs}


def _referenced(objects: dict[int, bytes], key: str, body: bytes) -> bytes:
    found = re.search(rb"/%b (\d+) 0 R" % key.encode(), body)
    assert found, key
    return objects[int(found[1])]


def _stream(body: bytes) -> bytes:
    return zlib.decompress(body.split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0])


def _unescaped(escape: re.Match[bytes]) -> bytes:
    what = escape[1]
    return bytes([int(what, 8)]) if what.isdigit() else _NAMED.get(what, what)
