"""SIFT Flow: outdoor scenes with two label maps, 33 semantic and three geometric classes.

    DIR/Images/spatial_envelope_256x256_static_8outdoorcategories/ID.jpg
    DIR/SemanticLabels/spatial_envelope_256x256_static_8outdoorcategories/ID.mat   S: 0 void, 1..33
    DIR/GeoLabels/spatial_envelope_256x256_static_8outdoorcategories/ID.mat   S: -1, 0 void, 1..3
    DIR/{trainval,test}.txt     ids, one a line; without them the published lists are used

This is the layout of SiftFlowDataset.zip; DIR may also be a folder that holds `SiftFlowDataset`.

Liu, Yuen, Torralba: Nonparametric scene parsing, PAMI 2011. Geometric classes: Tighe, Lazebnik:
SuperParsing, ECCV 2010.
"""

from __future__ import annotations

import functools
from pathlib import Path

from fcn_jax.classes import read_names, table_from_names
from fcn_jax.data import files
from fcn_jax.data.images import encoded_image
from fcn_jax.data.matlab import read_mat_labels
from fcn_jax.data.records import Plan, Read

SIFT_FLOW_SEMANTIC = table_from_names(
    read_names(files.package_file("sift_flow_classes.txt")),
    first_id=1,
    void_id=0,
    unscored=("cow", "desert", "moon"),  # absent from the test set
)
"""SIFT Flow's 33 semantic classes; 0 is void."""

SIFT_FLOW_GEOMETRIC = table_from_names("sky, horizontal, vertical", first_id=1, void_id=0)
"""SIFT Flow's three geometric classes; 0 (and -1 in its files) is void."""

URL = "http://www.cs.unc.edu/~jtighe/Papers/ECCV10/siftflow/SiftFlowDataset.zip"
INNER = "spatial_envelope_256x256_static_8outdoorcategories"
FOLDERS = {
    "image": f"Images/{INNER}",
    "sem": f"SemanticLabels/{INNER}",
    "geo": f"GeoLabels/{INNER}",
}
FULL_SIZES = {"trainval": 2486, "test": 200}
WITHOUT_ANNOTATIONS = ("highway_bost181", "street_urb506")
READERS: dict[str, Read] = {
    "image": encoded_image,
    "sem": functools.partial(read_mat_labels, variable="S", table=SIFT_FLOW_SEMANTIC),
    "geo": functools.partial(read_mat_labels, variable="S", table=SIFT_FLOW_GEOMETRIC, void=-1),
}


def plan(manual_dir: Path | None) -> Plan:
    """What the files in `manual_dir` make."""
    root = files.find_root(
        "sift_flow",
        manual_dir,
        (".", "SiftFlowDataset", "sift-flow", "sift_flow", "siftflow"),
        [FOLDERS["image"]],
        url=URL,
        what="the folder that holds Images, SemanticLabels and GeoLabels",
    )
    if absent := [folder for folder in FOLDERS.values() if not (root / folder).is_dir()]:
        raise FileNotFoundError(
            f"sift_flow: {root} has no folder {files.named(absent)}; it is in {URL}"
        )
    paths = {
        array: files.by_stem(root / folder, (".jpg",) if array == "image" else (".mat",))
        for array, folder in FOLDERS.items()
    }
    excluded = [name for name in WITHOUT_ANNOTATIONS if paths["image"].pop(name, None)]
    lists = files.split_lists("sift_flow", root, FULL_SIZES, published=True)
    return files.plan_files(
        "sift_flow",
        files.complete(lists, paths),
        READERS,
        {"sem": SIFT_FLOW_SEMANTIC, "geo": SIFT_FLOW_GEOMETRIC},
        source=str(root),
        needs=f"Images/{INNER}/ID.jpg, SemanticLabels/{INNER}/ID.mat and GeoLabels/{INNER}/ID.mat; "
        f"all are in {URL}",
        full_sizes=FULL_SIZES,
        notes=[f"left out for lack of annotations: {', '.join(excluded)}"] if excluded else [],
    )
