"""Small trees of files in the layouts in which data sets are published, with random contents.

A tree's function returns what it wrote: the arrays of each image by its id. `TREES` says what the
data sets must make of them.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from fcn_jax.classes import ClassTable
from fcn_jax.data import prepare, writing
from fcn_jax.data.camvid import CAMVID
from fcn_jax.data.nyudv2 import NYUDV2
from fcn_jax.data.pascal_context import PASCAL_CONTEXT
from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC, SIFT_FLOW_SEMANTIC
from fcn_jax.data.voc import VOC

Written = dict[str, dict[str, np.ndarray]]

# ======================================================================== files


def save_image(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Returns what was stored, for a JPEG is not what was given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        return np.array(image)


def random_image(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return save_image(path, rng.integers(0, 256, (*size, 3), np.uint8))


def save_palette(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", ids.shape[::-1], ids.astype(np.uint8).tobytes())
    image.putpalette(VOC.palette.ravel().tolist())
    image.save(path)


def save_grey(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path)


def save_sbd(path: Path, ids: np.ndarray) -> None:
    """A .mat file with the nesting of SBD's: a 1x1 struct array GTcls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": ids.astype(np.uint8)}
    scipy.io.savemat(path, {"GTcls": fields})


def save_mat(path: Path, variable: str, values: np.ndarray, dtype: Any = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {variable: values.astype(dtype)})


def write_list(path: Path, ids: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(ids))  # the published lists end without a line feed


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(5, 30, 2).tolist()
    return height, width


# ======================================================================== trees


def camvid_tree(root: Path, rng: np.random.Generator) -> Written:
    written = {}
    for split, names in {"train": ("b.jpg", "a.png", "c.png"), "val": ("d.jpeg",)}.items():
        for name in names:
            size = random_size(rng)
            image = random_image(root / split / name, rng, size)
            ids = rng.integers(0, 12, size)
            save_grey(root / f"{split}annot" / f"{Path(name).stem}.png", ids)
            label = np.where(ids == 11, 255, ids).astype(np.uint8)
            written[Path(name).stem] = {"image": image, "label": label}
    return written


VOC_IDS = {"train": ["2008_1", "2008_2"], "val": ["2007_000033", "2008_3"]}


def voc_tree(
    root: Path, rng: np.random.Generator, ids: Mapping[str, list[str]] = VOC_IDS
) -> Written:
    """VOC2012 in `root`, with the images of every split in `ids`; the lists name two more."""
    written = {}
    for split, names in ids.items():
        lines = [*names, f"absent_{split}", ""]
        write_list(root / f"ImageSets/Segmentation/{split}.txt", lines)
        for name in names:
            size = random_size(rng)
            image = random_image(root / f"JPEGImages/{name}.jpg", rng, size)
            label = rng.choice([*range(21), 255], size).astype(np.uint8)
            save_palette(root / f"SegmentationClass/{name}.png", label)
            written[name] = {"image": image, "label": label}
    return written


SBD_IDS = {"train": ["2008_000002", "2010_000001"], "val": ["2009_000009"]}


def sbd_tree(root: Path, rng: np.random.Generator) -> Written:
    written = {}
    for split, names in SBD_IDS.items():
        write_list(root / f"{split}.txt", [*names, f"absent_{split}"])
        for name in names:
            size = random_size(rng)
            label = rng.integers(0, 21, size).astype(np.uint8)
            save_sbd(root / f"cls/{name}.mat", label)
            image = random_image(root / f"img/{name}.jpg", rng, size)
            written[name] = {"image": image, "label": label}
    return written


NYU_IDS = {"train": ["5449", "6140"], "val": ["5010"], "test": ["5133", "6002"]}


def nyu_tree(
    root: Path,
    rng: np.random.Generator,
    ids: dict[str, list[str]] = NYU_IDS,
    kinds: tuple[str, ...] = ("depth", "hha"),
    size: tuple[int, int] | None = None,
) -> Written:
    written = {}
    for name in (name for names in ids.values() for name in names):
        shape = size or random_size(rng)
        labels = rng.integers(0, 41, shape)
        save_mat(root / f"segmentation/img_{name}.mat", "segmentation", labels)
        written[name] = {
            "image": random_image(root / f"data/images/img_{name}.png", rng, shape),
            "label": np.where(labels == 0, 255, labels - 1).astype(np.uint8),
        }
        if "depth" in kinds:
            lowest, highest = (0, 65536) if "hha" in kinds else (700, 9999)
            depth = rng.integers(lowest, highest, shape).astype(np.uint16)
            written[name]["depth"] = save_image(root / f"data/depth/img_{name}.png", depth)
            assert written[name]["depth"].dtype == np.uint16
        if "hha" in kinds:
            written[name]["hha"] = random_image(root / f"data/hha/img_{name}.png", rng, shape)
    return written


SIFT_FLOW_FOLDER = "spatial_envelope_256x256_static_8outdoorcategories"


SIFT_FLOW_IDS = ("coast_natu975", "forest_for121", "insidecity_art947", "street_bost64")


def sift_flow_tree(
    root: Path, rng: np.random.Generator, names: Iterable[str] = SIFT_FLOW_IDS
) -> Written:
    written = {}
    # A photograph that has no labels, on purpose.
    random_image(root / f"Images/{SIFT_FLOW_FOLDER}/highway_bost181.jpg", rng, (9, 9))
    for name in names:
        size = random_size(rng)
        sem, geo = rng.integers(0, 34, size), rng.integers(-1, 4, size)
        save_mat(root / f"SemanticLabels/{SIFT_FLOW_FOLDER}/{name}.mat", "S", sem, np.float64)
        save_mat(root / f"GeoLabels/{SIFT_FLOW_FOLDER}/{name}.mat", "S", geo, np.int16)
        written[name] = {
            "image": random_image(root / f"Images/{SIFT_FLOW_FOLDER}/{name}.jpg", rng, size),
            "sem": np.where(sem == 0, 255, sem - 1).astype(np.uint8),
            "geo": np.where(geo < 1, 255, geo - 1).astype(np.uint8),
        }
    return written


def write_labels_txt(path: Path, rng: np.random.Generator) -> dict[int, str]:
    """459 labels in any order, among them the 59 as labels.txt spells them, some with spaces."""
    spelt = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
    spelt |= {"pottedplant": "potted plant", "tvmonitor": "tv monitor"}
    names = [spelt.get(name, name) for name in PASCAL_CONTEXT.names[1:]]
    # Names that resemble classes and are none.
    names += ["bedcloth cover", "dining room", "bird cage", "unknown"]
    names += [f"thing {number}" for number in range(459 - len(names))]
    rng.shuffle(names)
    path.write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names, start=1)))
    return dict(enumerate(names, start=1))


CONTEXT_IDS = {"train": ["2008_000008", "2008_000015"], "val": ["2008_000002"]}


def context_tree(root: Path, rng: np.random.Generator) -> Written:
    devkit = root / "VOCdevkit/VOC2010"
    root.mkdir(parents=True, exist_ok=True)
    names = write_labels_txt(root / "labels.txt", rng)
    called = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
    labels = np.zeros(460, np.uint8)
    for number, name in names.items():
        name = called.get(name, name.replace(" ", ""))
        if name in PASCAL_CONTEXT.names:
            labels[number] = PASCAL_CONTEXT.names.index(name)
    assert (labels > 0).sum() == 59
    written = {}
    for split, split_ids in CONTEXT_IDS.items():
        write_list(devkit / f"ImageSets/Main/{split}.txt", [*split_ids, f"2009_{split}"])
        random_image(devkit / f"JPEGImages/2009_{split}.jpg", rng, (4, 4))  # has no label file
        for name in split_ids:
            size = random_size(rng)
            raw = rng.integers(1, 460, size)
            save_mat(root / f"trainval/{name}.mat", "LabelMap", raw, np.uint16)
            image = random_image(devkit / f"JPEGImages/{name}.jpg", rng, size)
            written[name] = {"image": image, "label": labels[raw]}
    return written


@dataclasses.dataclass(frozen=True)
class Tree:
    """What a data set must make of its small tree.

    Attributes:
        make: Writes it.
        ids: Of every split.
        label_maps: The class tables.
        places: Where the tree may lie in a folder, and what of that folder is then given.
        note: One of the notes.
        modalities: The inputs.
    """

    make: Callable[[Path, np.random.Generator], Written]
    ids: Mapping[str, Iterable[str]]
    label_maps: Mapping[str, ClassTable]
    places: tuple[tuple[str, str], ...]
    note: str = ""
    modalities: tuple[str, ...] = ("image",)


TREES = {
    "camvid": Tree(
        camvid_tree,
        {"train": ("a", "b", "c"), "val": ("d",)},
        {"label": CAMVID},
        (("CamVid", ""), ("CamVid", "CamVid")),
    ),
    "voc2012": Tree(
        voc_tree,
        {**VOC_IDS, "seg11valid": ("2007_000033",)},
        {"label": VOC},
        tuple(("VOCdevkit/VOC2012", place) for place in ("", "VOCdevkit", "VOCdevkit/VOC2012")),
        "seg11valid has 1 of the 736 images",
    ),
    "sbd": Tree(
        sbd_tree,
        SBD_IDS,
        {"label": VOC},
        (("", ""), ("benchmark_RELEASE/dataset", "")),
        "val has 1 of the 2857 images",
    ),
    "nyudv2": Tree(
        nyu_tree,
        NYU_IDS,
        {"label": NYUDV2},
        (("", ""), ("nyud", "")),
        "test has 2 of the 654 images",
        ("image", "depth", "hha"),
    ),
    "sift_flow": Tree(
        sift_flow_tree,
        {"trainval": SIFT_FLOW_IDS[1::2], "test": SIFT_FLOW_IDS[::2]},
        {"sem": SIFT_FLOW_SEMANTIC, "geo": SIFT_FLOW_GEOMETRIC},
        (("", ""), ("SiftFlowDataset", "")),
        "left out for lack of annotations: highway_bost181",
    ),
    "pascal_context": Tree(
        context_tree,
        CONTEXT_IDS,
        {"label": PASCAL_CONTEXT},
        tuple(("", place) for place in ("", "VOCdevkit", "VOCdevkit/VOC2010")),
        "train has 2 of the 4998 images",
    ),
}


def assert_holds(source: Iterable[Any], written: Written, arrays: tuple[str, ...]) -> None:
    """A source's examples hold these arrays, as they were written, and their ids."""
    for example in source:
        assert set(example) == {*arrays, "id"}
        for name in arrays:
            expected = written[example["id"]][name]
            assert example[name].dtype == expected.dtype
            np.testing.assert_array_equal(example[name], expected, err_msg=name)


def send_entries(monkeypatch: pytest.MonkeyPatch, pickler: Any = pickle) -> None:
    """Entries are pickled and read anew, as those of large sets are for other processes."""
    write_shard = writing._write_shard

    def sent(work: Any, shard: Any, entries: Any, add: Any) -> None:
        work, shard, entries = pickle.loads(pickler.dumps((work, shard, entries)))
        write_shard(work, shard, entries, add)

    monkeypatch.setattr(writing, "_write_shard", sent)


# ======================================================================== damaged trees


def assert_refused(dataset: str, root: Path, message: str) -> None:
    """Preparing a damaged tree fails with a message, and leaves nothing that looks complete."""
    made = root.with_name("made")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(dataset, data_dir=made, manual_dir=root)
    assert not list(made.rglob("dataset_info.json"))
