"""Data sets that are made of files: lists of ids, files by name, and the plan made of both."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fcn_jax.classes import ClassTable
from fcn_jax.data.records import PICTURE, Contents, Kind, Plan, Read, file_entry


def find_folder(
    bases: Iterable[Path | None], places: Iterable[str], holds: Iterable[str]
) -> Path | None:
    """The first of `places`, folders relative to each base, that holds all the folders `holds`."""
    for base, place in itertools.product(filter(None, bases), places):
        if all((base / place / folder).is_dir() for folder in holds):
            return (base / place).resolve()
    return None


def find_root(
    data_set: str,
    manual_dir: Path | None,
    places: Iterable[str],
    holds: Sequence[str],
    *,
    url: str,
    what: str,
) -> Path:
    """As `find_folder`, in `manual_dir`; the error says to download `url` and to give `what`."""
    root = find_folder([manual_dir], places, holds)
    if root is None:
        there = f"{manual_dir} has no folder {' and '.join(holds)}" if manual_dir else "no data"
        raise FileNotFoundError(
            f"{data_set}: {there}. Download {url} and give {what} as manual_dir"
        )
    return root


def split_lists(
    data_set: str, folder: Path, splits: Iterable[str], published: bool = False, prefix: str = ""
) -> dict[str, list[str]]:
    """The ids that the files SPLIT.txt of a folder list, each once, in their order.

    Where a file is missing, the list that comes with the package stands in for it if `published`;
    otherwise it lists nothing. `prefix` is taken off the ids. No two files may share ids.
    """
    lists: dict[str, list[str]] = {}
    for split in splits:
        path = folder / f"{split}.txt"
        if published and not path.exists():
            path = package_file(f"{data_set}_{split}.txt")
        lists[split] = read_ids(path, prefix) if path.exists() else []
    refuse_shared(data_set, {f"{split}.txt": ids for split, ids in lists.items()})
    return lists


def package_file(name: str) -> Path:
    """A file of `fcn_jax/data`: a list of ids, or of classes."""
    return Path(__file__).with_name(name)


def read_ids(path: Path, prefix: str = "") -> list[str]:
    """The first word of every line, each once."""
    words = (line.split()[0] for line in path.read_text().splitlines() if line.strip())
    return list(dict.fromkeys(word.removeprefix(prefix) for word in words))


def by_stem(folder: Path, suffixes: Sequence[str], prefix: str = "") -> dict[str, Path]:
    """Files of a folder by name without suffix; earlier suffixes win. Empty without the folder.

    Suffixes have dots and lower case. Names must begin with `prefix`, which is taken off.
    """
    return {
        path.stem.removeprefix(prefix): path
        for suffix in reversed(suffixes)
        for path in folder.glob(f"{prefix}*")
        if path.suffix.lower() == suffix
    }


def complete(
    lists: Mapping[str, Iterable[str]], files: Mapping[str, Mapping[str, Path]]
) -> dict[str, dict[str, dict[str, Path]]]:
    """The files of every id of every split that has all of them, in the order of the ids."""
    return {
        split: {
            name: {array: paths[name] for array, paths in files.items()}
            for name in ids
            if all(name in paths for paths in files.values())
        }
        for split, ids in lists.items()
    }


def plan_files(
    data_set: str,
    splits: Mapping[str, Mapping[str, Mapping[str, Path]]],
    readers: Mapping[str, Read],
    label_maps: Mapping[str, ClassTable],
    *,
    source: str,
    needs: str,
    full_sizes: Mapping[str, int] | None = None,
    notes: Iterable[str] = (),
    modalities: Mapping[str, Kind] = PICTURE,
    more: Iterable[Path] = (),
    options: object = None,
) -> Plan:
    """Plan a data set that is made of files.

    Args:
        splits: The file of every array of every id; splits without images are left out.
        source: Where the data come from, in words.
        needs: The files that an image needs and where to get them, for the error.
        full_sizes: The number of images of each split of the full set; a split that has fewer gets
            a note.
        more: Further files on which the prepared copy depends.
        options: The options on which it depends.
    """
    shortfalls = tuple(
        f"{split} has {len(splits[split])} of the {full} images of the full set"
        for split, full in (full_sizes or {}).items()
        if split in splits and len(splits[split]) < full
    )
    splits = {split: found for split, found in splits.items() if found}
    if not splits:
        raise FileNotFoundError(f"{data_set}: {source} holds no image of its lists with {needs}")
    files = {path for ids in splits.values() for paths in ids.values() for path in paths.values()}

    def contents() -> Contents:
        entries = {
            split: [
                file_entry(name, {array: (path, readers[array]) for array, path in paths.items()})
                for name, paths in ids.items()
            ]
            for split, ids in splits.items()
        }
        return Contents(entries, label_maps, source, (*shortfalls, *notes), modalities)

    return Plan(f"files-{fingerprint({*files, *more}, options)}", contents)


def refuse_shared(data_set: str, lists: Mapping[str, Iterable[str]]) -> None:
    """Raises a ValueError that names two lists and the first few ids that they share, if any."""
    for (other, other_ids), (name, ids) in itertools.combinations(lists.items(), 2):
        if shared := sorted(set(other_ids) & set(ids)):
            raise ValueError(
                f"{data_set}: {len(shared)} images are in both {other} and {name}: {named(shared)}"
            )


def fingerprint(files: Iterable[Path], *options: object) -> str:
    """A short hash of files' names, sizes and times, and of options.

    It names the prepared copy, so that a changed source is prepared anew and two sources are never
    taken for each other.
    """
    digest = hashlib.sha256(repr(options).encode())
    for path in sorted(files, key=str):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def state_of(folder: Path, *others: Path) -> str:
    """A short hash of the names, sizes and times of all files below a folder, and of others.

    It takes a second or two of hundreds of thousands, which files belong together many times that.
    """
    digest = hashlib.sha256()
    below = (os.path.join(at, name) for at, _, names in folders_below(folder) for name in names)
    for path in itertools.chain(map(str, others), below):
        with contextlib.suppress(OSError):  # a link to nothing
            status = os.stat(path)
            line = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def folders_below(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` in order and through links, each folder once: a link may lead back."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield place, folders, sorted(names)


def named(items: Iterable[object], limit: int = 5) -> str:
    """The first few of many names, for a message."""
    names = [str(item) for item in items]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def check_reachable(url: str, seconds: float = 20) -> None:
    """Raises an OSError soon if a download cannot begin; TFDS tries an absent host for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):  # others may only mean that the server dislikes HEAD
            raise
