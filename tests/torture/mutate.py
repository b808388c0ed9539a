"""Files changed at random, in the ways that break readers: bytes, and what formats are made of."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

WORDS = (0, 1, 127, 128, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
NUMBERS = (0, -1, 1, 255, 256, 1e308, -1e308, 2**31, 2**63, 2**64, 10**20, 10**400, 0.5, 1e-320)
TEXTS = ("", " ", "a", "label", "../../x", "\0", "é" * 300, "x" * 10_000, "1" * 5000, "NaN", "}{")
SHAPES = (
    *("()", "(8, 8)", "(8,)", "(-1, 8)", "(10**9, 10**9)", f"({2**31}, {2**31})", "(1,)*99"),
    *("(8, 8, 3)", "(0, 8)", "(True, 8)", "(8.0, 8)", "None", "[8, 8]", "(" * 500),
)
TYPES = (
    *("'|u1'", "'<i8'", "'>i4'", "'<f4'", "'<f2'", "'|b1'", "'|O'", "'<c16'", "'|V8'", "'<U9'"),
    *("'<M8[s]'", "'|S5'", "[('a', '<i4')]", "'<i99'", "None", "{}", "('<i4', (9, 9))"),
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": []}, *NUMBERS, *TEXTS)


def mutated(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A file changed in one to three places; ``others`` lend pieces."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        change = rng.choice([*formats(content), of_bytes, of_bytes])
        content = change(content, others, rng)
    return content


def formats(content: bytes) -> list[Any]:
    """The changes that know what a file's content is made of."""
    if content.startswith(b"\x89PNG"):
        return [of_png, of_png]
    if content.startswith(b"PK\x03\x04"):
        return [of_zip, of_zip]
    if content.startswith(b"\x93NUMPY"):
        return [of_npy, of_npy]
    if content[8:9] == b"{" and len(content) > 16:
        return [of_safetensors, of_safetensors]
    if content.lstrip()[:1] in (b"{", b"["):
        return [of_json, of_json, of_json, of_text]
    if content.isascii() or _is_text(content):
        return [of_text, of_text, of_text]
    return []


def _is_text(content: bytes) -> bool:
    try:
        return content.decode().isprintable()
    except ValueError:
        return False


# ======================================================================== bytes


def of_bytes(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Flips, cuts, pieces put in, taken out, doubled, or of another file; numbers blown up."""
    data = bytearray(content)
    size = len(data)
    if size == 0:
        return rng.randbytes(rng.randint(0, 40))
    at = rng.randrange(size)
    if rng.random() < 0.5:  # where the structure is: at the beginning and at the end
        at = rng.choice([1, -1]) * rng.randrange(min(200, size)) % size
    length = min(size - at, rng.choice([1, 4, 16, 100, 1000]))
    match rng.randrange(9):
        case 0 | 1:
            for _ in range(rng.choice([1, 1, 4, 30])):
                data[at] ^= 1 << rng.randrange(8)
                at = rng.randrange(size)
        case 2:
            del data[at:]
        case 3:
            data[at:at] = rng.randbytes(rng.randint(1, 20))
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = data[at : at + length] * rng.choice([1, 2, 50])
        case 6:
            other = rng.choice(others)
            start = rng.randrange(len(other) or 1)
            data[at : at + length] = other[start : start + length]
        case 7:
            word = rng.choice(WORDS)
            width = rng.choice([1, 2, 4, 4, 8])
            order: Any = rng.choice(["little", "big"])
            data[at : at + width] = (word % 256**width).to_bytes(width, order)
        case _:
            data[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    return bytes(data)


# ======================================================================== formats


def of_png(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A chunk is changed, doubled, moved or dropped, and its checksum is right again."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return of_bytes(content, others, rng)
    index = 0 if rng.random() < 0.3 else rng.randrange(len(chunks))
    name, body = chunks[index]
    match rng.randrange(6):
        case 0 | 1 | 2:
            if name == b"IDAT" and rng.random() < 0.7:
                try:
                    pixels = zlib.decompress(body)
                except zlib.error:
                    pixels = body
                body = zlib.compress(of_bytes(pixels, others, rng))
            else:
                body = of_bytes(body, [body], rng)
            chunks[index] = (name, body)
        case 3:
            chunks.insert(rng.randrange(len(chunks)), chunks[index])
        case 4:
            del chunks[index]
        case _:
            kind = rng.choice([b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"zTXt"])
            bomb = b"a\0\0" + zlib.compress(bytes(rng.choice([10, 10**5, 10**7])))
            chunks.insert(1, (kind, rng.choice([rng.randbytes(rng.randint(0, 30)), bomb])))
    out = content[:8]
    for name, body in chunks:
        crc = zlib.crc32(name + body)
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    return out


def of_zip(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A member is changed, doubled, renamed or dropped; checksums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return of_bytes(content, others, rng)
    if not members:
        return of_bytes(content, others, rng)
    index = rng.randrange(len(members))
    name, body = members[index]
    match rng.randrange(7):
        case 0:
            del members[index]
        case 1:
            members[index] = (rng.choice(["_", "a/../b", "x" * 300, name + ".npy", "é"]), body)
        case _:
            members[index] = (name, mutated(body, [body], rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
        for name, body in members:
            file.writestr(name, body)
    return out.getvalue()


def of_npy(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Another shape, type or order in the header, of the right length."""
    body = content[10 + int.from_bytes(content[8:10], "little") :]
    shape = rng.choice(SHAPES)
    kind = rng.choice(TYPES)
    header = f"{{'descr': {kind}, 'fortran_order': {rng.choice(['True', 'False', '0', 'None'])}, "
    header += f"'shape': {shape}, }}"
    if rng.random() < 0.2:
        header = of_bytes(header.encode(), others, rng).decode("latin1")
    raw = header.encode("latin1", "replace")
    raw += b" " * (-(11 + len(raw)) % 64) + b"\n"
    return content[:8] + struct.pack("<H", len(raw) % 2**16) + raw + body


def of_safetensors(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Another header, of the right length."""
    length = int.from_bytes(content[:8], "little")
    header = of_json(content[8 : 8 + length], others, rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def of_json(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A value becomes one of another type, huge, deep, absent, or another key's."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return of_text(content, others, rng)
    places = list(_places(tree))
    if not places:
        return of_text(content, others, rng)
    owner, key = rng.choice(places)
    match rng.randrange(10):
        case 0:
            del owner[key]
        case 1:
            other, other_key = rng.choice(places)
            try:
                owner[key] = json.loads(json.dumps(other[other_key]))
            except (KeyError, IndexError):
                owner[key] = None
        case 2:
            if isinstance(owner, dict):
                owner[rng.choice(["", "id", "name", "x" * 1000, "é", "0"])] = owner.pop(key)
            else:
                owner[key] = [owner[key]] * rng.choice([0, 2, 50])
        case 3 if isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
            owner[key] = -owner[key] if rng.random() < 0.5 else float(owner[key]) + 0.25
        case _:
            owner[key] = rng.choice(VALUES)
    text = json.dumps(tree)
    if rng.random() < 0.1:
        deep = rng.choice(
            ["[" * 100_000, "[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000]
        )
        text = text.replace(rng.choice(["1", "0", "null", '"']), deep, 1)
    if rng.random() < 0.1:
        text = re.sub(
            r"\d+", rng.choice(["NaN", "Infinity", "1e400", "-1e400", "9" * 5000]), text, count=1
        )
    return text.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Any:
    """Where values stand in a tree."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def of_text(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A word is replaced, doubled or dropped, or lines are; other encodings."""
    text = content.decode("utf-8", "replace")
    match rng.randrange(9):
        case 0:
            lines = text.splitlines(keepends=True) or [""]
            index = rng.randrange(len(lines))
            lines[index : index + 1] = rng.choice([[], [lines[index]] * 2, [lines[index]] * 300])
            text = "".join(lines)
        case 1:
            text = text.replace(
                rng.choice([",", "\n", '"', ":", "(", ")", "="]), rng.choice(TEXTS), 1
            )
        case 2:
            encoding = rng.choice(["utf-16", "utf-8-sig", "latin1", "utf-32"])
            return text.encode(encoding, "replace")
        case 3:
            at = rng.randrange(len(text) + 1)
            text = (
                text[:at]
                + rng.choice([*TEXTS, '"', "\n", "\r", ",", "#", "'", "x" * 140_000])
                + text[at:]
            )
        case _:
            words = list(re.finditer(r"[-+.\w]+", text))
            if words:
                word = rng.choice(words)
                new = rng.choice(
                    [*map(str, NUMBERS[:11]), *TEXTS, "nan", "inf", "1e400", "()", "None"]
                )
                text = text[: word.start()] + new + text[word.end() :]
    return text.encode("utf-8", "surrogatepass")
