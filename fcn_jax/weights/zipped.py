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
            members, size = archive.infolist(), path.stat().st_size
            if len({info.filename for info in members}) != len(members):
                raise ValueError("an archive with several members of the same name")
            plain = [i.file_size for i in members if i.compress_type == zipfile.ZIP_STORED]
            total = sum(info.file_size for info in members)
            if sum(plain) > size or total > most_bytes(size):
                raise ValueError(f"an archive of {size} bytes that claims to hold {total}")
            kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            odd = [i.filename for i in members if i.compress_type not in kinds or i.flag_bits & 1]
            if odd:
                raise ValueError(f"encrypted or unusually packed members: {', '.join(odd[:4])}")
            yield archive
        except (  # what zipfile raises on damaged archives
            *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
            *(ArithmeticError, LookupError, OSError, RuntimeError),
        ) as error:
            raise ValueError(f"a damaged archive: {error}") from error
