"""The cache of published weights: what is not there yet is fetched, and checked before it is used.

A file comes to its place in the cache whole or not at all. Where no hash is published, that of the
first fetch is remembered beside the file, as ``FILE.sha256``. Processes that want one file wait for
the first of them; if that one ends, even killed, the next goes on at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fcn_jax.weights.published import Published

CACHE = "FCN_JAX_CACHE"
"""The environment variable that names another cache folder."""

TRIES = 3
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def cache_folder() -> Path:
    """Where weights are kept: ``weights`` in ``$FCN_JAX_CACHE``, or in the user's cache folder."""
    if given := os.environ.get(CACHE):
        return Path(given).expanduser().absolute() / "weights"
    import platformdirs

    return platformdirs.user_cache_path("fcn_jax", appauthor=False) / "weights"


def cached_path(row: Published) -> Path:
    """Where the file of a row is, or will be; a file that is put there by hand is found."""
    return cache_folder() / row.name.partition(":")[0] / row.file


def fetch(row: Published) -> Path:
    """The file of a row in the cache, fetched if it is not there or not what it should be.

    Raises:
        OSError: If it cannot be fetched, or the cache not be written to. The message has the URL,
            the hash, and the path at which a file that is put there by hand is found.
        ValueError: If what comes is not the file of that hash.
    """
    path, known = cached_path(row), _known_hash(row)
    if path.is_file():
        if not known or _is_of(known, path):
            return path
        tell(f"{path} is not the file of {known}; it is fetched anew")
    with _part_of(row, path) as (part, file):
        known = _known_hash(row)
        if path.is_file() and (not known or _is_of(known, path)):
            return path  # another process has fetched it meanwhile
        tell(f"fetching {row.name} ({row.megabytes} MB) from {row.url}; licence: {row.licence}")
        _download(row, part, file)
        if known and not _is_of(known, part):
            came = "a web page" if part.open("rb").read(64).lstrip().startswith(b"<") else "a file"
            text = f"{row.url} gave {came} of another hash than {known}"
            if not row.hash:
                text += f", which was the first one's; remove {_hash_file(row)} to take the new one"
            raise ValueError(f"{text}; {by_hand(row)}")
        if not row.hash:
            digest = remember(row, part)
            tell(f"no hash of {row.name} is published; that of this file is sha256:{digest}")
        if os.name == "nt":  # where an open file keeps its name
            file.close()
        part.replace(path)
    return path


def remember(row: Published, path: Path) -> str:
    """Remembers the sha256 of a row's file, where the cache can be written to, and returns it."""
    import pooch

    digest = pooch.file_hash(str(path), "sha256")
    with contextlib.suppress(OSError):
        _hash_file(row).write_text(f"{digest}  {row.file}\n")
    return digest


def check_read(row: Published, error: ValueError | None) -> None:
    """Is told whether a file of the cache could be read, which decides where no hash is published.

    A fetched one that cannot is thrown away, its hash forgotten; one that was put there by hand is
    left alone, and its hash remembered if it can.

    Raises:
        ValueError: If it could not be read.
    """
    path, known = cached_path(row), _hash_file(row).is_file()
    if error is None:
        if not row.hash and not known:
            remember(row, path)
        return
    if not row.hash and known:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            _hash_file(row).unlink()
        raise ValueError(
            f"{error}; it is thrown away, and fetched anew the next time; {by_hand(row)}"
        ) from error
    raise error


def by_hand(row: Published) -> str:
    """How to go on without a network."""
    known = row.hash or "no hash is published"
    return f"to put it there by hand, save {row.url} ({known}) as {cached_path(row)}"


def tell(text: str) -> None:
    """Tells the person at the terminal what is going on."""
    print(f"note: {text}", file=sys.stderr, flush=True)


# ======================================================================== hashes


def _hash_file(row: Published) -> Path:
    path = cached_path(row)
    return path.with_name(f"{path.name}.sha256")


def _known_hash(row: Published) -> str:
    """The published hash, or the one that is remembered; empty where there is neither."""
    if not row.hash and _hash_file(row).is_file():
        return f"sha256:{_hash_file(row).read_text(errors='replace')[:64]}"
    return row.hash


def _is_of(known: str, path: Path) -> bool:
    import pooch

    algorithm, _, digest = known.partition(":")
    return pooch.file_hash(str(path), algorithm).startswith(digest)


# ======================================================================== downloads


@contextlib.contextmanager
def _part_of(row: Published, path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file beside another, for its content; gone at the end unless it got the other's name.

    No other process writes to it: its lock is the file system's, and goes with its process. Where
    there are no locks each process has a file of its own.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        file = _open_locked(part)
        if file is None:
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            file = part.open("ab")
    except OSError as error:
        raise OSError(
            f"{row.name} is not in the cache, and {path.parent} cannot be written to "
            f"({error.strerror}); {CACHE}=DIR gives another cache folder"
        ) from error
    try:
        yield part, file
    finally:
        if file.closed or _has_name(file, part):
            part.unlink(missing_ok=True)
        file.close()


def _open_locked(part: Path) -> IO[bytes] | None:
    """Opens a file that no other process has, after waiting; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        file = part.open("ab")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"waiting for another process, which fetches {part.name[1:-5]}")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            file.close()
            if error.errno not in _NO_LOCKS:
                raise
            part.unlink(missing_ok=True)
            return None
        if _has_name(file, part):
            return file
        file.close()  # the other one has finished it, or removed it


def _has_name(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _download(row: Published, part: Path, file: IO[bytes]) -> None:
    """Downloads a row's file, trying again where that may help."""
    import pooch
    import requests
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    headers = {"Accept-Encoding": "identity"}  # a length is then that of the file
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    for attempt in range(1, TRIES + 1):
        file.truncate(0)
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = _Bar(progress, row.file)
            options: Any = {"progressbar": bar, "chunk_size": 1 << 20}
            get = pooch.HTTPDownloader(**options, timeout=TIMEOUT, headers=headers)
            try:
                get(row.url, file, None)
                file.flush()
                if (size := part.stat().st_size) >= bar.total:
                    return
                reason, final = f"{size} of {bar.total} bytes came", False
            except requests.RequestException as error:
                reason, final = _in_short(error)
        if final or attempt == TRIES:
            raise ConnectionError(f"{row.name} cannot be fetched: {reason}; {by_hand(row)}")
        tell(f"{reason}; trying again")
        time.sleep(attempt)


class _Bar:
    """What pooch moves while it downloads."""

    total = 0

    def __init__(self, progress: Any, title: str) -> None:
        self._progress, self._task = progress, progress.add_task(title, total=None)

    def update(self, size: int) -> None:
        self._progress.update(self._task, advance=size, total=self.total or None)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None: ...


def _in_short(error: Any) -> tuple[str, bool]:
    """What an error of requests says, and whether it is no use to try again."""
    import requests

    if isinstance(error, requests.HTTPError):
        answer: Any = error.response
        return f"the server answers {answer.status_code} {answer.reason}", answer.status_code < 500
    if "timed out" in str(error):
        return f"no answer for {TIMEOUT:g} seconds", False
    texts = {
        requests.exceptions.ProxyError: "the proxy gives no connection",
        requests.exceptions.SSLError: "the certificate of the server is not accepted",
        requests.exceptions.ChunkedEncodingError: "the connection ended early",
        requests.exceptions.ConnectionError: "no connection to the server",
    }
    for kind, text in texts.items():
        if isinstance(error, kind):
            return text, kind is requests.exceptions.SSLError
    return " ".join(str(error).split())[:200], True
