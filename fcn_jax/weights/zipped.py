"""Untrusted zip archives: `.npz` files, and PyTorch's since 1.6."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from fcn_jax.weights.arrays import most_bytes

SIGNATURE = b"PK\x03\x04"
MAX_DIRECTORY = 1 << 20
"""Bytes of the list of members: more than 10000 of them, half a second to go through."""


class _LimitedReads(io.BufferedReader):
    """A file that refuses to read more at once than ``limit``: zipfile believes any length."""

    limit: int | None = MAX_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise ValueError(f"an archive whose list of members claims {size} bytes")
        return super().read(size)


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive whose sizes are plausible; damage found later is a ValueError as well."""
    with _LimitedReads(io.FileIO(path)) as file:
        try:
            archive = zipfile.ZipFile(file)
            file.limit = None
            _check_members(archive.infolist(), path.stat().st_size)
            yield archive
        except (  # what zipfile raises on damaged archives
            *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
            *(ArithmeticError, LookupError, OSError, RuntimeError),
        ) as error:
            raise ValueError(f"a damaged archive: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], file_size: int) -> None:
    """Refuses what no archive of weights has."""
    if len({info.filename for info in members}) != len(members):
        raise ValueError("an archive with several members of the same name")
    stored = sum(i.file_size for i in members if i.compress_type == zipfile.ZIP_STORED)
    total = sum(info.file_size for info in members)
    if stored > file_size or total > most_bytes(file_size):
        raise ValueError(f"an archive of {file_size} bytes that claims to hold {total}")
    known = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if odd := [i.filename for i in members if i.compress_type not in known or i.flag_bits & 1]:
        raise ValueError(f"encrypted or unusually packed members: {', '.join(odd[:4])}")
