"""Zip archives that nobody vouches for: `.npz` files, and PyTorch's since 1.6."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

SIGNATURE = b"PK\x03\x04"
MAX_DIRECTORY = 1 << 20
"""Bytes of the list of members: more than 10000 of them, half a second to go through."""

_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
)
"""What `zipfile` raises on damaged archives."""


def recognises(head: bytes) -> bool:
    """Whether a file begins as an archive with members does."""
    return head.startswith(SIGNATURE)


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive whose sizes can be believed.

    Raises:
        ValueError: If it is damaged (found now, or while the context is open), or its members
            claim more than a file of this size holds in earnest.
    """
    with _Guarded(io.FileIO(path)) as file:
        try:
            archive = zipfile.ZipFile(file)
            file.limit = None
            check_sizes(archive.infolist(), path.stat().st_size)
            yield archive
        except _ERRORS as error:
            raise ValueError(f"a damaged archive: {error}") from error


class _Guarded(io.BufferedReader):
    """A file that refuses to read more at once than ``limit``: zipfile believes any length."""

    limit: int | None = MAX_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise ValueError(f"an archive whose list of members claims {size} bytes")
        return super().read(size)


def check_sizes(members: Sequence[zipfile.ZipInfo], file_size: int) -> None:
    """Refuses archives that are bombs, before anything is inflated.

    Weights hardly compress. Sixteen times the size of the file, and 64 MiB for the zeros of
    small networks, leave room for all that is meant.

    Raises:
        ValueError: If the members claim more, or a member occurs twice or is encrypted.
    """
    if len({info.filename for info in members}) != len(members):
        raise ValueError("an archive with several members of the same name")
    stored = sum(i.file_size for i in members if i.compress_type == zipfile.ZIP_STORED)
    total = sum(info.file_size for info in members)
    if stored > file_size or total > (64 << 20) + 16 * file_size:
        raise ValueError(
            f"an archive of {file_size} bytes that claims to hold {total}; it would not be read "
            "even if there were the memory"
        )
    if packed := [
        info.filename
        for info in members
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        or info.flag_bits & 1
    ]:
        raise ValueError(f"encrypted or unusually packed members: {', '.join(packed[:4])}")


def stored_member(content: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of an uncompressed member as a view of the mapped file, their checksum checked.

    Raises:
        ValueError: If the member is compressed, does not lie within the file, or is damaged.
    """
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed, which PyTorch never does")
    header = content[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != SIGNATURE:
        raise ValueError(f"a damaged archive: nothing is at the place of {info.filename}")
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    start = info.header_offset + 30 + name_size + extra_size
    data = content[start : start + info.file_size]
    if len(data) != info.file_size:
        raise ValueError(f"truncated: {info.filename} should have {info.file_size} bytes")
    if zlib.crc32(data) != info.CRC:
        raise ValueError(f"a damaged archive: {info.filename} has another checksum")
    return data
