"""`tfds:NAME`: data sets that TFDS's own writer prepared, read without TensorFlow."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import tensorflow_datasets as tfds
from dataset_trees import send_entries
from PIL import Image

from fcn_jax.data import check_disjoint, open_source, prepare
from fcn_jax.data.tfds import CITYSCAPES, OXFORD_IIIT_PET, SCENE_PARSE_150, SCENE_PARSE_OBJECTS

features = tfds.features


@pytest.fixture(autouse=True)
def _as_to_processes(monkeypatch):
    send_entries(monkeypatch, cloudpickle)


@pytest.fixture(autouse=True)
def _no_other_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))


def encoded(pixels: np.ndarray, kind: str = "PNG") -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    buffer.seek(0)
    return buffer


def decoded(file: io.BytesIO) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(file.getvalue())))


def make_set(
    data_dir: Path,
    name: str,
    spec: dict[str, Any],
    splits: dict[str, list[dict[str, Any]]],
    *,
    config: str | None = None,
    version: str = "1.0.0",
) -> Path:
    """Have TFDS write a data set; returns its folder."""
    wanted_name = name

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = wanted_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(spec))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(found) for split, found in splits.items()}

        def _generate_examples(self, found):
            yield from enumerate(found)

    builder = Made(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def to_tfrecord(folder: Path, split: str, shards: int) -> None:
    """Turn a split of ArrayRecord into TFRecord files, written here after the format's description.

    A record: its length in 8 bytes, a checksum, the content, a checksum.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    (path,) = folder.glob(f"*-{split}.array_record-*")
    records = ArrayRecordDataSource([str(path)])
    contents: list[bytes] = [records[i] for i in range(len(records))]
    parts = np.array_split(np.arange(len(contents)), shards)
    for number, part in enumerate(parts):
        name = path.name.replace("array_record", "tfrecord").replace(
            "00000-of-00001", f"{number:05}-of-{shards:05}"
        )
        with (folder / name).open("wb") as file:
            for i in part:
                file.write(struct.pack("<Q", len(contents[i])) + b"sum1" + contents[i] + b"sum2")
    path.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for entry in info["splits"]:
        entry["filepathTemplate"] = entry["filepathTemplate"].replace("array_record", "tfrecord")
        if entry["name"] == split:
            entry["shardLengths"] = [str(len(part)) for part in parts]
    (folder / "dataset_info.json").write_text(json.dumps(info))


PET_SPEC = {
    "image": features.Image(encoding_format="jpeg"),
    "label": features.ClassLabel(names=["a", "b"]),
    "file_name": features.Text(),
    "segmentation_mask": features.Image(shape=(None, None, 1), use_colormap=True),
    "head_bbox": features.BBoxFeature(),
}


def pet(rng, name: str, mask: np.ndarray | None = None) -> dict[str, Any]:
    size = tuple(rng.integers(5, 30, 2))
    mask = rng.integers(1, 4, size).astype(np.uint8) if mask is None else mask
    return {
        "image": encoded(rng.integers(0, 256, (*mask.shape, 3), np.uint8), "JPEG"),
        "label": "b",
        "file_name": f"{name}.jpg",
        "segmentation_mask": encoded(mask),
        "head_bbox": features.BBox(0.0, 0.0, 1.0, 1.0),
    }


def make_pets(data_dir: Path, rng, **options) -> tuple[Path, dict[str, dict[str, Any]]]:
    names = {"train": ["Abyssinian_1", "beagle_2", "pug_3"], "test": ["Siamese_9"]}
    splits = {split: [pet(rng, name) for name in found] for split, found in names.items()}
    written = {
        example["file_name"].removesuffix(".jpg"): example
        for found in splits.values()
        for example in found
    }
    return make_set(data_dir, "oxford_iiit_pet", PET_SPEC, splits, **options), written


def assert_pets(source, written) -> None:
    for example in source:
        ground_truth = written[example["id"]]
        np.testing.assert_array_equal(example["image"], decoded(ground_truth["image"]))
        mask = decoded(ground_truth["segmentation_mask"])
        # Of the data set's README: 1 foreground, 2 background, 3 not classified.
        expected = np.select([mask == 1, mask == 2], [0, 1], 255)
        np.testing.assert_array_equal(example["label"], expected)


@pytest.mark.parametrize("place", ["data_dir", "tfds_dir", "environment"])
def test_oxford_iiit_pet(tmp_path, rng, monkeypatch, place):
    data_dir = tmp_path / "d"
    folder = data_dir if place == "data_dir" else tmp_path / "elsewhere"
    _, written = make_pets(folder, rng, version="3.2.0")  # an older one than TFDS's code makes
    options: dict[str, Any] = {"data_dir": data_dir}
    if place == "tfds_dir":
        options["tfds_dir"] = str(folder)
    if place == "environment":
        monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    train, test = (open_source("tfds:oxford_iiit_pet", s, **options) for s in ("train", "test"))
    assert set(train.ids) == {"Abyssinian_1", "beagle_2", "pug_3"}
    assert test.ids == ("Siamese_9",)
    assert train.modalities == ("image",)
    assert train.label_maps == {"label": OXFORD_IIIT_PET}
    assert train.classes.names == ("pet", "background")
    assert_pets(train, written)
    assert_pets(test, written)
    check_disjoint(train, test)
    assert len(open_source("tfds:oxford_iiit_pet", "train[:1]", **options)) == 1
    assert open_source("tfds:oxford_iiit_pet", "train", **options).path == train.path


@pytest.mark.parametrize("shards", [1, 2])
def test_tfrecord_files(tmp_path, rng, shards):
    folder, written = make_pets(tmp_path, rng)
    for split in ("train", "test"):
        to_tfrecord(folder, split, shards if split == "train" else 1)
    source = open_source("tfds:oxford_iiit_pet", "train", data_dir=tmp_path)
    assert len(source) == 3
    assert_pets(source, written)


@pytest.mark.parametrize("cut", [1, 4, 13, 100])
def test_cut_tfrecord_files_are_refused(tmp_path, rng, cut):
    folder, _ = make_pets(tmp_path, rng)
    for split in ("train", "test"):
        to_tfrecord(folder, split, 1)
    (path,) = folder.glob("*-train.tfrecord-*")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"oxford_iiit_pet-train\.tfrecord.* ends in a record"):
        prepare("tfds:oxford_iiit_pet", data_dir=tmp_path)


def test_ids_that_occur_twice_are_refused(tmp_path, rng):
    found = [pet(rng, "pug_1"), pet(rng, "pug_1")]
    make_set(tmp_path, "oxford_iiit_pet", PET_SPEC, {"train": found})
    with pytest.raises(ValueError, match="two examples of train have the id 'pug_1'"):
        prepare("tfds:oxford_iiit_pet", data_dir=tmp_path)
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


def test_a_removed_or_changed_origin(tmp_path, rng):
    folder, written = make_pets(tmp_path, rng)
    first = prepare("tfds:oxford_iiit_pet", data_dir=tmp_path)
    shutil.rmtree(folder)
    source = open_source("tfds:oxford_iiit_pet", "train", data_dir=tmp_path)
    assert source.path == first
    assert_pets(source, written)
    _, changed = make_pets(tmp_path, rng)
    source = open_source("tfds:oxford_iiit_pet", "train", data_dir=tmp_path)
    assert source.path != first
    assert_pets(source, changed)


def test_scene_parse150_of_one_id_per_pixel(tmp_path, rng):
    spec = {
        "image": features.Image(encoding_format="jpeg"),
        "annotation": features.Image(encoding_format="png"),
    }
    masks = [rng.integers(0, 151, (9, 14)).astype(np.uint8) for _ in range(4)]
    masks[1] = np.repeat(masks[1][..., None], 3, axis=-1)  # some tools store grey as RGB
    found = [
        {
            "image": encoded(rng.integers(0, 256, (9, 14, 3), np.uint8), "JPEG"),
            "annotation": encoded(mask),
        }
        for mask in masks
    ]
    make_set(tmp_path, "scene_parse150", spec, {"train": found})
    source = open_source("tfds:scene_parse150", "train", data_dir=tmp_path)
    assert source.label_maps == {"label": SCENE_PARSE_150}
    assert source.ids == tuple(f"train_{i:06}" for i in range(4))
    grey = [mask if mask.ndim == 2 else mask[..., 0] for mask in masks]
    expected = {np.where(mask == 0, 255, mask - 1).astype(np.uint8).tobytes() for mask in grey}
    assert {example["label"].tobytes() for example in source} == expected


def test_real_scene_parse150_images(shared, tmp_path):
    folder = shared / "data/ade20k_sample"
    spec = {"image": features.Image(encoding_format="jpeg"), "annotation": features.Image()}
    paths = sorted((folder / "annotations").iterdir())
    found = [
        {
            "image": io.BytesIO((folder / f"images/{path.stem}.jpg").read_bytes()),
            "annotation": io.BytesIO(path.read_bytes()),
        }
        for path in paths
    ]
    make_set(tmp_path, "scene_parse150", spec, {"test": found})
    source = open_source("tfds:scene_parse150", "test", data_dir=tmp_path)
    assert source.label_maps == {"label": SCENE_PARSE_150}
    expected = {}
    for path in paths:
        raw = np.array(Image.open(path)).astype(int)
        image = np.array(Image.open(folder / f"images/{path.stem}.jpg"))
        expected[image.tobytes()] = np.where(raw == 0, 255, raw - 1)
    for example in source:
        np.testing.assert_array_equal(example["label"], expected[example["image"].tobytes()])


def test_scene_parse150_of_the_instance_task(tmp_path, rng):
    """What TFDS 4.9 downloads: the class in red, the number of the object in green."""
    spec = {"image": features.Image(), "annotation": features.Image()}
    found, expected = [], set()
    for number in range(3):
        mask = np.zeros((9, 14, 3), np.uint8)
        if number:  # the first has no object at all
            mask[..., 0] = rng.integers(0, 101, (9, 14))
            mask[..., 1] = rng.integers(0, 30, (9, 14))
        expected.add(mask[..., 0].tobytes())
        image = encoded(rng.integers(0, 256, (9, 14, 3), np.uint8))
        found.append({"image": image, "annotation": encoded(mask)})
    make_set(tmp_path, "scene_parse150", spec, {"train": found})
    source = open_source("tfds:scene_parse150", "train", data_dir=tmp_path)
    assert source.label_maps == {"label": SCENE_PARSE_OBJECTS}
    assert {example["label"].tobytes() for example in source} == expected
    assert "instance task" in "\n".join(source.notes)


def test_scene_parse_tables_agree():
    """The hundred objects are named as among the 150, and stand in the same order."""
    names = iter(SCENE_PARSE_150.names)
    assert all(name in names for name in SCENE_PARSE_OBJECTS.names[1:])
    assert (SCENE_PARSE_150.num_classes, SCENE_PARSE_OBJECTS.num_classes) == (150, 101)


CITY_SPEC = {
    "image_id": features.Text(),
    "image_left": features.Image(shape=(8, 16, 3), encoding_format="png"),
    "segmentation_label": features.Image(
        shape=(8, 16, 1), encoding_format="png", use_colormap=True
    ),
}


def city(rng, name: str) -> tuple[dict[str, Any], np.ndarray]:
    mask = rng.integers(0, 34, (8, 16)).astype(np.uint8)
    image = encoded(rng.integers(0, 256, (8, 16, 3), np.uint8))
    return {"image_id": name, "image_left": image, "segmentation_label": encoded(mask)}, mask


@pytest.mark.parametrize("given", ["cityscapes", "cityscapes/semantic_segmentation"])
def test_cityscapes(tmp_path, rng, given):
    names = {"train": ["aachen_000000_000019", "bremen_1"], "validation": ["ulm_2"], "test": ["x"]}
    splits, masks = {}, {}
    for split, ids in names.items():
        made = [city(rng, name) for name in ids]
        splits[split] = [example for example, _ in made]
        masks |= {name: mask for name, (_, mask) in zip(ids, made, strict=True)}
    make_set(tmp_path, "cityscapes", CITY_SPEC, splits, config="semantic_segmentation")
    # The benchmark's nineteen classes by their ids in the label files, in the order of its
    # training ids.
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    lookup = np.full(256, 255, np.uint8)
    lookup[ids] = np.arange(19)
    for split in ("train", "val", "validation"):
        source = open_source(f"tfds:{given}", split, data_dir=tmp_path)
        assert set(source.ids) == set(names["validation" if split == "val" else split])
        assert source.label_maps == {"label": CITYSCAPES}
        for example in source:
            np.testing.assert_array_equal(example["label"], lookup[masks[example["id"]]])
    with pytest.raises(ValueError, match="no split 'test'"):  # whose labels are not published
        open_source(f"tfds:{given}", "test", data_dir=tmp_path)


def test_cityscapes_classes():
    assert CITYSCAPES.num_classes == 19
    assert sorted(CITYSCAPES.ids) == list(range(34))
    assert CITYSCAPES.names[0] == "road"
    assert CITYSCAPES.names[-1] == "bicycle"
    assert CITYSCAPES.palette[0].tolist() == [128, 64, 128]
    assert CITYSCAPES.palette[13].tolist() == [0, 0, 142]  # car


OTHER_SPEC = {
    "photo": features.Image(),
    "ground_truth": features.Image(shape=(None, None, 1)),
    "array": features.Tensor(shape=(6, 7, 1), dtype=np.uint8),
    "named": features.LabeledImage(labels=["ground", "thing"], shape=(None, None, 1)),
    "number": features.Scalar(np.int64),
}


def make_other(data_dir: Path, rng, **options) -> list[dict[str, Any]]:
    found = [
        {
            "photo": encoded(rng.integers(0, 256, (6, 7, 3), np.uint8)),
            "ground_truth": encoded(rng.integers(3, 7, (6, 7)).astype(np.uint8)),
            "array": rng.integers(0, 3, (6, 7, 1)).astype(np.uint8),
            "named": encoded(rng.integers(0, 2, (6, 7)).astype(np.uint8)),
            "number": 100 + i,
        }
        for i in range(3)
    ]
    make_set(data_dir, "my_set", OTHER_SPEC, {"train": found}, **options)
    return found


def test_any_other_data_set(tmp_path, rng):
    found = {str(example["number"]): example for example in make_other(tmp_path, rng)}

    def labels(**options):
        source = open_source(
            "tfds:my_set", "train", data_dir=tmp_path, image="photo", ids="number", **options
        )
        assert set(source.ids) == set(found)
        for example in source:
            ground_truth = found[example["id"]]
            np.testing.assert_array_equal(example["image"], decoded(ground_truth["photo"]))
        return source, {example["id"]: example["label"] for example in source}

    source, read = labels(mask="ground_truth", num_classes=3, first_id=3, void=(6,))
    assert source.classes.names == ("class 0", "class 1", "class 2")
    for name, label in read.items():
        ground_truth = decoded(found[name]["ground_truth"])
        np.testing.assert_array_equal(label, np.where(ground_truth == 6, 255, ground_truth - 3))

    (tmp_path / "classes.csv").write_text("name,id,r,g,b\nsky,4,1,2,3\nsea,3,0,0,9\nlake,5,0,0,1\n")
    file = str(tmp_path / "classes.csv")
    source, read = labels(mask="ground_truth", classes=file, void=(6,))
    assert source.classes.names == ("sky", "sea", "lake")
    for name, label in read.items():
        ground_truth = decoded(found[name]["ground_truth"])
        expected = np.select(
            [ground_truth == 4, ground_truth == 3, ground_truth == 5], [0, 1, 2], 255
        )
        np.testing.assert_array_equal(label, expected)

    source, read = labels(mask="array", num_classes=3)
    for name, label in read.items():
        np.testing.assert_array_equal(label, found[name]["array"][..., 0])

    source, read = labels(mask="named")
    assert source.classes.names == ("ground", "thing")
    for name, label in read.items():
        np.testing.assert_array_equal(label, decoded(found[name]["named"]))


def test_what_has_to_be_said_of_another_data_set(tmp_path, rng):
    make_other(tmp_path, rng)
    (tmp_path / "c.txt").write_text("a\nb\n")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, r"no feature 'image' \(image=\); it has .*photo \(Image\)"),
        ({"image": "photo"}, r"say which feature is the mask \(mask=\): .*named \(LabeledImage\)"),
        ({"image": "photo", "mask": "ground_truth"}, r"classes=FILE .*or num_classes=N"),
        (
            {"image": "photo", "mask": "ground_truth", "num_classes": 3},
            r"train_000000, ground_truth: label values .*[56].*belong to no class",
        ),
        ({"image": "photo", "mask": "photo", "num_classes": 3}, "train_000000, photo: is an RGB"),
        (
            {"image": "photo", "mask": "number", "num_classes": 3},
            "train_000000, number: not a map of ids",
        ),
        ({"num_classes": 3, "classes": str(tmp_path / "c.txt")}, "classes or num_classes, not"),
        ({"maks": "ground_truth"}, "no option 'maks'; it has tfds_dir, image, mask"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            prepare("tfds:my_set", data_dir=tmp_path, **options)
    with pytest.raises(FileNotFoundError, match=r"no class file .*absent\.txt"):
        prepare("tfds:my_set", data_dir=tmp_path, classes="absent.txt")
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


def test_versions_and_configurations(tmp_path, rng):
    options = {"data_dir": tmp_path, "image": "photo", "mask": "array", "num_classes": 3}
    contents = {}
    for version in ("1.9.0", "1.10.0"):
        found = make_other(tmp_path, rng, config="small", version=version)
        contents[version] = {example["array"].tobytes() for example in found}

    def read(name):
        return {e["label"].tobytes() for e in open_source(name, "train", **options)}

    assert read("tfds:my_set") == read("tfds:my_set/small") == contents["1.10.0"]
    assert read("tfds:my_set/small:1.9.0") == read("tfds:my_set:1.9.0") == contents["1.9.0"]
    make_other(tmp_path, rng, config="large")
    with pytest.raises(ValueError, match="choose one of tfds:my_set/large, tfds:my_set/small"):
        read("tfds:my_set")
    with pytest.raises(ValueError, match="expected tfds:NAME"):
        read("tfds:../my_set")


def test_what_is_not_there_and_cannot_be_prepared(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"tfds:no_such_set is not in .*d, .*tfds_dir"):
        prepare("tfds:no_such_set", data_dir=tmp_path / "d")

    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens: as good as offline
    message = r"TFDS could not prepare it: .*download_and_prepare\(\).* tfds_dir"
    with pytest.raises(FileNotFoundError, match=message):
        prepare("tfds:oxford_iiit_pet", data_dir=tmp_path / "d")
    (tmp_path / "d/downloads").mkdir()  # what was downloaded may do without a network

    def without_tensorflow(self, **options):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", without_tensorflow)
    with pytest.raises(FileNotFoundError, match="it needs TensorFlow"):
        prepare("tfds:oxford_iiit_pet", data_dir=tmp_path / "d")
    # Cityscapes has to be fetched by a person: TFDS says which files.
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit_trainvaltest\.zip"):
        prepare("tfds:cityscapes", data_dir=tmp_path / "d")


def test_a_missing_data_set_is_prepared_by_tfds(tmp_path, rng, monkeypatch):
    """`download_and_prepare` is told the format and where a person's files lie."""
    asked = {}
    (tmp_path / "d/downloads").mkdir(parents=True)  # without it the network is tried first

    def prepare_pets(self, *, file_format, download_config):
        asked.update(format=file_format, manual_dir=download_config.manual_dir)
        monkeypatch.undo()
        asked["written"] = make_pets(tmp_path / "d", rng, version="4.0.0")[1]

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare_pets)
    source = open_source(
        "tfds:oxford_iiit_pet", "train", data_dir=tmp_path / "d", manual_dir=tmp_path
    )
    assert_pets(source, asked["written"])
    assert (asked["format"], asked["manual_dir"]) == ("array_record", str(tmp_path))


@pytest.mark.slow  # it imports everything in a new process
def test_no_tensorflow(tmp_path, rng):
    make_pets(tmp_path, rng)
    code = (
        "import sys, fcn_jax.data as d\n"
        f"s = d.open_source('tfds:oxford_iiit_pet', 'train', data_dir={str(tmp_path)!r})\n"
        "s[0]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
