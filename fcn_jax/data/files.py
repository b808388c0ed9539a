"""Find the files of a data set: lists of ids, files by name, what is there and what is missing."""

from __future__ import annotations

import hashlib
import importlib.resources
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any


def listed_ids(path: Path) -> list[str]:
    """The ids a split file lists, one a line, each once, in its order; none if it is not there."""
    return _ids(path.read_text()) if path.exists() else []


def package_ids(name: str) -> list[str]:
    """The ids of a list that comes with the package: `fcn_jax/data/NAME.txt`."""
    return _ids(importlib.resources.files("fcn_jax.data").joinpath(f"{name}.txt").read_text())


def _ids(text: str) -> list[str]:
    return list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))


def by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by name without suffix; earlier suffixes win. Empty without the folder."""
    if not folder.is_dir():
        return {}
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    files.sort(key=lambda path: suffixes.index(path.suffix.lower()), reverse=True)
    return {path.stem: path for path in files}


def complete(
    ids: Iterable[str], files: Mapping[str, Mapping[str, Path]]
) -> dict[str, dict[str, Path]]:
    """The files of every id that has all of them.

    Args:
        ids: In the order wanted.
        files: For every array of an example ("image", "label") the files by id.
    """
    return {
        name: {array: paths[name] for array, paths in files.items()}
        for name in ids
        if all(name in paths for paths in files.values())
    }


def shortfalls(
    splits: Mapping[str, Collection[str]], full_sizes: Mapping[str, int]
) -> tuple[str, ...]:
    """A note on every split that holds fewer images than the full set."""
    return tuple(
        f"{split} has {len(splits[split])} of the {full} images of the full set"
        for split, full in full_sizes.items()
        if split in splits and len(splits[split]) < full
    )


def refuse_shared(data_set: str, lists: Mapping[str, Iterable[str]]) -> None:
    """Refuse lists that share ids.

    Args:
        data_set: Named in the message.
        lists: The ids of each list, by what to call the list.

    Raises:
        ValueError: naming two lists and the first few ids they share.
    """
    sets = {name: set(ids) for name, ids in lists.items()}
    for number, (name, ids) in enumerate(sets.items()):
        for other, other_ids in list(sets.items())[:number]:
            if shared := sorted(ids & other_ids):
                raise ValueError(
                    f"{data_set}: {len(shared)} images are in both {other} and {name}: "
                    f"{named(shared)}"
                )


def fingerprint(files: Iterable[Path], *options: Any) -> str:
    """A short hash of files' names, sizes and times, and of options.

    It names the prepared copy, so that a changed source is prepared anew and two sources are never
    taken for each other.
    """
    digest = hashlib.sha256(repr(options).encode())
    for path in sorted(files):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def named(items: Iterable[Any], limit: int = 5) -> str:
    """The first few of many names, for a message."""
    names = [str(item) for item in items]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def check_reachable(url: str, seconds: float = 20) -> None:
    """Find out soon whether a download can begin; TFDS tries an unreachable host for minutes.

    Raises:
        OSError: if the host does not answer, or says that there is no such file.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):  # others may only mean that the server dislikes HEAD
            raise
