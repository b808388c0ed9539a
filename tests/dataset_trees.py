"""Small trees of files in the layouts in which data sets are published, with random contents.

A tree's function returns what it wrote: the arrays of each image by its id.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from fcn_jax.data import prepare
from fcn_jax.data.pascal_context import PASCAL_CONTEXT
from fcn_jax.data.voc import VOC

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


def camvid_tree(root: Path, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    written = {}
    for split, names in {"train": ("b.jpg", "a.png", "c.png"), "val": ("d.jpeg",)}.items():
        for name in names:
            size = random_size(rng)
            image = random_image(root / split / name, rng, size)
            ids = rng.integers(0, 12, size)
            save_grey(root / f"{split}annot" / f"{Path(name).stem}.png", ids)
            written[Path(name).stem] = image, np.where(ids == 11, 255, ids)
    return written


def voc_tree(root: Path, rng: np.random.Generator, ids: dict[str, list[str]]) -> dict:
    """VOC2012 in `root`, with the images of every split in `ids`; the lists name two more."""
    written = {}
    for split, names in ids.items():
        path = root / f"ImageSets/Segmentation/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*names, f"absent_{split}"]) + "\n")
        for name in names:
            size = random_size(rng)
            image = random_image(root / f"JPEGImages/{name}.jpg", rng, size)
            label = rng.choice([*range(21), 255], size)
            save_palette(root / f"SegmentationClass/{name}.png", label)
            written[name] = image, label
    return written


VOC_IDS = {"train": ["2008_1", "2008_2"], "val": ["2007_000033", "2008_3"]}


NYU_IDS = {"train": ["5449", "6140"], "val": ["5010"], "test": ["5133", "6002"]}


def nyu_tree(
    root: Path,
    rng: np.random.Generator,
    ids: dict[str, list[str]] = NYU_IDS,
    kinds: tuple[str, ...] = ("depth", "hha"),
    size: tuple[int, int] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
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


def sift_flow_tree(root: Path, rng: np.random.Generator, names) -> dict[str, dict]:
    written = {}
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


SIFT_FLOW_IDS = ("coast_natu975", "forest_for121", "insidecity_art947", "street_bost64")


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


def context_tree(root: Path, rng: np.random.Generator) -> tuple[dict, dict[str, list[str]]]:
    devkit = root / "VOCdevkit/VOC2010"
    root.mkdir(exist_ok=True)
    names = write_labels_txt(root / "labels.txt", rng)
    called = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
    labels = np.zeros(460, np.uint8)
    for number, name in names.items():
        name = called.get(name, name.replace(" ", ""))
        if name in PASCAL_CONTEXT.names:
            labels[number] = PASCAL_CONTEXT.names.index(name)
    assert (labels > 0).sum() == 59
    ids = {"train": ["2008_000008", "2008_000015"], "val": ["2008_000002"]}
    written = {}
    for split, split_ids in ids.items():
        write_list(devkit / f"ImageSets/Main/{split}.txt", [*split_ids, f"2009_{split}"])
        random_image(devkit / f"JPEGImages/2009_{split}.jpg", rng, (4, 4))  # has no label file
        for name in split_ids:
            size = random_size(rng)
            raw = rng.integers(1, 460, size)
            save_mat(root / f"trainval/{name}.mat", "LabelMap", raw, np.uint16)
            image = random_image(devkit / f"JPEGImages/{name}.jpg", rng, size)
            written[name] = {"image": image, "label": labels[raw]}
    return written, ids


def assert_holds(
    source: Iterable[Any], written: dict[str, dict[str, np.ndarray]], arrays: tuple[str, ...]
) -> None:
    """A source's examples hold these arrays, as they were written, and their ids."""
    for example in source:
        assert set(example) == {*arrays, "id"}
        for name in arrays:
            expected = written[example["id"]][name]
            assert example[name].dtype == expected.dtype
            np.testing.assert_array_equal(example[name], expected, err_msg=name)


# ======================================================================== damaged trees


def assert_refused(dataset: str, root: Path, message: str) -> None:
    """Preparing a damaged tree fails with a message, and leaves nothing that looks complete."""
    made = root.with_name("made")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(dataset, data_dir=made, manual_dir=root)
    assert not list(made.rglob("dataset_info.json"))
