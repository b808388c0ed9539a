"""SIFT Flow: outdoor scenes with two label maps, 33 semantic and three geometric classes.

    DIR/Images/spatial_envelope_256x256_static_8outdoorcategories/ID.jpg
    DIR/SemanticLabels/spatial_envelope_256x256_static_8outdoorcategories/ID.mat   S: 0 void, 1..33
    DIR/GeoLabels/spatial_envelope_256x256_static_8outdoorcategories/ID.mat   S: -1, 0 void, 1..3
    DIR/{trainval,test}.txt     ids, one a line; without them the published lists are used

This is the layout of SiftFlowDataset.zip; DIR may also be a folder that holds `SiftFlowDataset`.
Examples have "image" and the label maps "sem" and "geo".

Splits: `trainval` (2486 images), `test` (200). The paper counts 2488; highway_bost181 and
street_urb506 lack annotations and are left out. Cow, desert and moon are absent from test and
left out of the means (`ClassRow.scored`). Of an incomplete tree the images present are used, and a
warning says how many of how many.

Liu, Yuen, Torralba: Nonparametric scene parsing, PAMI 2011. Geometric classes: Tighe, Lazebnik:
SuperParsing, ECCV 2010.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from fcn_jax.classes import table_from_names
from fcn_jax.data.files import (
    by_stem,
    complete,
    fingerprint,
    listed_ids,
    named,
    package_ids,
    refuse_shared,
    shortfalls,
)
from fcn_jax.data.images import encoded_image
from fcn_jax.data.matlab import read_mat, read_mat_labels
from fcn_jax.data.records import Contents, ExampleBuilder, FilesConfig, Kind, Read, file_entry

SIFT_FLOW_SEMANTIC = table_from_names(
    """
    awning, balcony, bird, boat, bridge, building, bus, car, cow, crosswalk, desert, door,
    fence, field, grass, moon, mountain, person, plant, pole, river, road, rock, sand, sea,
    sidewalk, sign, sky, staircase, streetlight, sun, tree, window
    """,
    first_id=1,
    void_id=0,
    unscored=("cow", "desert", "moon"),  # absent from the test set
)
"""SIFT Flow's 33 semantic classes; 0 is void."""

SIFT_FLOW_GEOMETRIC = table_from_names("sky, horizontal, vertical", first_id=1, void_id=0)
"""SIFT Flow's three geometric classes; 0 (and -1 in its files) is void."""

URL = "http://www.cs.unc.edu/~jtighe/Papers/ECCV10/siftflow/SiftFlowDataset.zip"
INNER = "spatial_envelope_256x256_static_8outdoorcategories"
PLACES: dict[str, tuple[str, str]] = {
    "image": ("Images", ".jpg"),
    "sem": ("SemanticLabels", ".mat"),
    "geo": ("GeoLabels", ".mat"),
}
ARRAYS: dict[str, Kind] = {"image": "picture", "sem": "labels", "geo": "labels"}
HEADS = {"sem": SIFT_FLOW_SEMANTIC, "geo": SIFT_FLOW_GEOMETRIC}
FULL_SIZES = {"trainval": 2486, "test": 200}
WITHOUT_ANNOTATIONS = ("highway_bost181", "street_urb506")

Splits = dict[str, dict[str, dict[str, Path]]]


def config(manual_dir: Path | None) -> FilesConfig:
    """Builder configuration for the files in `manual_dir`.

    Raises:
        FileNotFoundError: if the folder does not have the layout; it says what to put where.
        ValueError: if the splits share images.
    """
    root = _root(manual_dir)
    splits, _ = find_splits(root)
    files = {p for ids in splits.values() for paths in ids.values() for p in paths.values()}
    return FilesConfig(name=f"files-{fingerprint(files)}", root=root, arrays=ARRAYS)


class SiftFlow(ExampleBuilder):
    """SIFT Flow: outdoor scenes in 33 semantic and three geometric classes."""

    def contents(self, config: FilesConfig, dl_manager: tfds.download.DownloadManager) -> Contents:
        del dl_manager
        root = _root(config.root)
        splits, notes = find_splits(root)
        readers: dict[str, Read] = {
            "image": encoded_image,
            "sem": functools.partial(read_mat_labels, variable="S", table=SIFT_FLOW_SEMANTIC),
            "geo": read_geometric,
        }
        entries = {
            split: [
                file_entry(name, {array: (path, readers[array]) for array, path in paths.items()})
                for name, paths in ids.items()
            ]
            for split, ids in splits.items()
        }
        return Contents(entries, HEADS, source=str(root), notes=notes)


def read_geometric(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Geometric labels of a `.mat` file, in which -1 and 0 are void.

    Raises:
        ValueError: naming the file, if it cannot be read or holds ids of no class.
    """
    ids = read_mat(path, "S")
    try:
        return SIFT_FLOW_GEOMETRIC.to_labels(np.where(ids == -1, 0, ids))
    except ValueError as error:
        raise ValueError(f"{path}: S: {error}") from None


def find_splits(root: Path) -> tuple[Splits, tuple[str, ...]]:
    """The files of every id in every split, and notes on what is missing.

    Raises:
        FileNotFoundError: if no image of any split is there.
        ValueError: if the splits share images.
    """
    lists = {split: _ids(root, split) for split in FULL_SIZES}
    refuse_shared("sift_flow", {f"{split}.txt": ids for split, ids in lists.items()})
    files = {
        array: by_stem(root / folder / INNER, (suffix,))
        for array, (folder, suffix) in PLACES.items()
    }
    excluded = [name for name in WITHOUT_ANNOTATIONS if name in files["image"]]
    usable = {k: [i for i in ids if i not in WITHOUT_ANNOTATIONS] for k, ids in lists.items()}
    splits = {split: complete(ids, files) for split, ids in usable.items()}
    notes = shortfalls(splits, FULL_SIZES)
    if excluded:
        notes += (f"left out for lack of annotations: {', '.join(excluded)}",)
    splits = {split: found for split, found in splits.items() if found}
    if not splits:
        raise FileNotFoundError(
            f"sift_flow: {root} holds no image of its lists with Images/{INNER}/ID.jpg, "
            f"SemanticLabels/{INNER}/ID.mat and GeoLabels/{INNER}/ID.mat; all are in {URL}"
        )
    return splits, notes


def _ids(root: Path, split: str) -> list[str]:
    path = root / f"{split}.txt"
    return listed_ids(path) if path.exists() else package_ids(f"sift_flow_{split}")


def _root(manual_dir: Path | None) -> Path:
    """The folder that holds Images: the given one, or one of the usual ones in it."""
    places = (".", "SiftFlowDataset", "sift-flow", "sift_flow", "siftflow") if manual_dir else ()
    wanted = [f"{folder}/{INNER}" for folder, _ in PLACES.values()]
    for place in places:
        root = (manual_dir or Path()) / place
        if not (root / wanted[0]).is_dir():
            continue
        if missing := [folder for folder in wanted if not (root / folder).is_dir()]:
            raise FileNotFoundError(
                f"sift_flow: {root} has no folder {named(missing)}; it is in {URL}"
            )
        return root.resolve()
    there = f"{manual_dir} has no folder {wanted[0]}" if manual_dir else "no data"
    raise FileNotFoundError(
        f"sift_flow: {there}. Download {URL}, extract it, and give the folder that holds Images, "
        "SemanticLabels and GeoLabels as manual_dir"
    )
