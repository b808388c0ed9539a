"""NYUDv2, SIFT Flow, PASCAL-Context and SBD from small trees in their published layouts."""

from __future__ import annotations

import functools
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from fcn_jax.classes import (
    NYUDV2,
    PASCAL_CONTEXT,
    SIFT_FLOW_GEOMETRIC,
    SIFT_FLOW_SEMANTIC,
    VOC,
)
from fcn_jax.data import DATASETS, check_disjoint, open_source, prepare, row_of
from fcn_jax.data.files import package_ids
from fcn_jax.data.matlab import read_mat


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def save_image(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Returns what was stored, for a JPEG is not what was given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        return np.array(image)


def random_image(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return save_image(path, rng.integers(0, 256, (*size, 3), np.uint8))


def save_mat(path: Path, variable: str, values: np.ndarray, dtype: Any = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {variable: values.astype(dtype)})


def write_list(path: Path, ids) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(ids))  # the published lists end without a line feed


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(5, 30, 2).tolist()
    return height, width


def assert_equal(source, written: dict[str, dict[str, np.ndarray]], arrays: tuple[str, ...]):
    for example in source:
        assert set(example) == {*arrays, "id"}
        for name in arrays:
            expected = written[example["id"]][name]
            assert example[name].dtype == expected.dtype
            np.testing.assert_array_equal(example[name], expected, err_msg=name)


# ---- NYUDv2


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


@pytest.mark.parametrize("place", ["", "nyud"])
def test_nyudv2(tmp_path, rng, place, capfd):
    written = nyu_tree(tmp_path / "m" / place, rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    for split, names in {**NYU_IDS, "trainval": [*NYU_IDS["train"], *NYU_IDS["val"]]}.items():
        source = open_source("nyudv2", split, **where)
        assert source.ids == tuple(names)
        assert source.features == ("image", "depth", "hha")
        assert source.heads == {"label": NYUDV2}
        assert source.classes == NYUDV2
        assert list(source[0]) == ["image", "depth", "hha", "label", "id"]
        assert_equal(source, written, ("image", "depth", "hha", "label"))
        assert_equal(
            pickle.loads(pickle.dumps(source)), written, ("image", "depth", "hha", "label")
        )
    assert "test has 2 of the 654 images" in capfd.readouterr().err
    check_disjoint(*(open_source("nyudv2", split, **where) for split in ("trainval", "test")))
    # Prepared, it is found without its files.
    shutil.rmtree(tmp_path / "m")
    assert len(open_source("nyudv2", "val", data_dir=tmp_path / "d")) == 1


def test_nyudv2_lists_are_the_published_ones(shared):
    sizes = {"train": 381, "val": 414, "test": 654}
    lists = {split: package_ids(f"nyudv2_{split}") for split in sizes}
    for split, ids in lists.items():
        assert ids == (shared / f"data/splits/nyud/{split}.txt").read_text().split()
        assert len(ids) == sizes[split]
    assert len({name for ids in lists.values() for name in ids}) == 1449


def test_nyudv2_lists_in_the_tree_win(tmp_path, rng):
    ids = {"train": ["7", "8"], "val": ["9"], "test": ["1"]}
    nyu_tree(tmp_path / "m", rng, ids)
    for split, names in ids.items():
        write_list(tmp_path / f"m/{split}.txt", [f"img_{name}" for name in names])
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    assert open_source("nyudv2", "trainval", **where).ids == ("7", "8", "9")
    for split in ("train", "val"):
        (tmp_path / f"m/{split}.txt").unlink()
    write_list(tmp_path / "m/trainval.txt", ["8", "9"])
    shutil.rmtree(tmp_path / "d")
    assert open_source("nyudv2", "trainval", **where).ids == ("8", "9")
    with pytest.raises(ValueError, match=r"no split 'train'; it has trainval \(2 images\), test"):
        open_source("nyudv2", "train", **where)
    write_list(tmp_path / "m/test.txt", ["1", "9"])
    with pytest.raises(ValueError, match=r"1 images are in both trainval\.txt and test\.txt: 9"):
        prepare("nyudv2", **where)


@pytest.mark.parametrize("camera", [(), (300.0, 310.0, 30.5, 20.5)])
@pytest.mark.parametrize("raw", [False, True])
def test_nyudv2_without_hha_computes_it(tmp_path, rng, camera, raw):
    from fcn_jax.data.hha import hha, nyu_camera

    size = (40, 60) if camera else (425, 560)
    ids = {"train": NYU_IDS["train"][:1], "test": NYU_IDS["test"][:1]}
    written = nyu_tree(tmp_path / "m", rng, ids, kinds=("depth",), size=size)
    fx, fy, cx, cy = camera or (0, 0, 0, 0)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]) if camera else nyu_camera(*size)
    for name, arrays in written.items():
        raw_depth = None
        if raw:
            raw_depth = arrays["depth"] * (rng.random(size) < 0.8).astype(np.uint16)
            save_image(tmp_path / f"m/data/rawdepth/img_{name}.png", raw_depth)
        arrays["hha"] = hha(arrays["depth"], matrix, raw_depth)
    source = open_source(
        "nyudv2", "train", data_dir=tmp_path / "d", manual_dir=tmp_path / "m", camera=camera
    )
    assert source.features == ("image", "depth", "hha")
    assert "hha was computed from depth" in "\n".join(source.notes)
    assert_equal(source, written, ("image", "depth", "hha", "label"))


def test_nyudv2_of_another_size_needs_a_camera(tmp_path, rng):
    nyu_tree(tmp_path / "m", rng, kinds=("depth",), size=(20, 30))
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    with pytest.raises(ValueError, match=r"img_5449\.png: cannot compute HHA .*camera"):
        prepare("nyudv2", **where)
    with pytest.raises(ValueError, match="camera needs fx, fy, cx, cy"):
        prepare("nyudv2", **where, camera=(1.0, 2.0))


@pytest.mark.parametrize("kinds", [(), ("hha",)])
def test_nyudv2_without_depth(tmp_path, rng, kinds):
    written = nyu_tree(tmp_path / "m", rng, kinds=kinds)
    source = open_source("nyudv2", "train", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")
    assert source.features == ("image", *kinds)
    left_out = "no data/depth: left out" if kinds else "no data/depth and no data/hha: left out"
    assert left_out in "\n".join(source.notes)
    assert_equal(source, written, ("image", *kinds, "label"))


def lose_one(kind, root, rng):
    (root / f"data/{kind}/img_5010.png").unlink()
    return rf"1 of 5 images have no .*/data/{kind}/img_ID\.png: 5010\. Put all .*nyud\.tar\.gz"


def lose_images(root, rng):
    shutil.rmtree(root / "data/images")
    return r"no folders data/images and segmentation.*nyud\.tar\.gz.*manual_dir"


def lose_pairs(root, rng):
    shutil.rmtree(root / "segmentation")
    (root / "segmentation").mkdir()
    return r"no image of its lists with both data/images/img_ID\.png.*nyud\.tar\.gz"


def shallow_depth(root, rng):
    save_image(root / "data/depth/img_5449.png", np.zeros((8, 8), np.uint8))
    return r"img_5449\.png: a depth image is a grey PNG of 16 bits"


def other_size(root, rng):
    save_image(root / "data/depth/img_5449.png", np.ones((3, 4), np.uint16))
    return r"depth/img_5449\.png: 4x3 pixels, but its image .*images/img_5449\.png has"


def unknown_id(root, rng):
    with Image.open(root / "data/images/img_5133.png") as image:
        size = image.size[::-1]
    save_mat(root / "segmentation/img_5133.mat", "segmentation", np.full(size, 41))
    return r"img_5133\.mat: segmentation: label values 41 .*known ids: 0\.\.40"


def other_variable(root, rng):
    save_mat(root / "segmentation/img_5133.mat", "labels", np.ones((4, 4)))
    return r"img_5133\.mat: cannot read segmentation: it holds labels"


def broken_mat(root, rng):
    (root / "segmentation/img_5133.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    return r"img_5133\.mat: cannot read segmentation"


@pytest.mark.parametrize(
    "damage",
    [
        functools.partial(lose_one, "depth"),
        functools.partial(lose_one, "hha"),
        lose_images,
        lose_pairs,
        shallow_depth,
        other_size,
        unknown_id,
        other_variable,
        broken_mat,
    ],
)
def test_nyudv2_problems_are_named_and_nothing_is_left(tmp_path, rng, damage):
    nyu_tree(tmp_path / "m", rng)
    message = damage(tmp_path / "m", rng)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare("nyudv2", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")
    assert not list((tmp_path / "d").rglob("dataset_info.json"))


def test_real_nyudv2_frame(shared, tmp_path):
    """The sample's colour, depth and raw depth, laid out as published."""
    sample = shared / "data/nyud_sample"
    root = tmp_path / "m"
    for folder, kind in (("images", "images"), ("depth", "depth"), ("rawdepth", "rawdepth")):
        (root / "data" / folder).mkdir(parents=True)
        shutil.copy(sample / f"rcnn-depth_{kind}.png", root / f"data/{folder}/img_5449.png")
    save_mat(root / "segmentation/img_5449.mat", "segmentation", np.ones((425, 560)))
    source = open_source("nyudv2", "train", data_dir=tmp_path / "d", manual_dir=root)
    example = source[0]
    depth = np.array(Image.open(sample / "rcnn-depth_depth.png"))
    np.testing.assert_array_equal(example["depth"], depth)
    np.testing.assert_array_equal(
        example["image"], np.array(Image.open(sample / "rcnn-depth_images.png"))
    )
    disparity = 31000 / np.maximum(depth / 10, 100)  # Gupta et al.'s, depth in centimetres
    assert np.abs(example["hha"][..., 0] - np.clip(disparity, 0, 255)).max() <= 1


# ---- SIFT Flow


INNER = "spatial_envelope_256x256_static_8outdoorcategories"


def sift_flow_tree(root: Path, rng: np.random.Generator, names) -> dict[str, dict]:
    written = {}
    for name in names:
        size = random_size(rng)
        sem, geo = rng.integers(0, 34, size), rng.integers(-1, 4, size)
        save_mat(root / f"SemanticLabels/{INNER}/{name}.mat", "S", sem, np.float64)
        save_mat(root / f"GeoLabels/{INNER}/{name}.mat", "S", geo, np.int16)
        written[name] = {
            "image": random_image(root / f"Images/{INNER}/{name}.jpg", rng, size),
            "sem": np.where(sem == 0, 255, sem - 1).astype(np.uint8),
            "geo": np.where(geo < 1, 255, geo - 1).astype(np.uint8),
        }
    return written


SIFT_IDS = ("coast_natu975", "forest_for121", "insidecity_art947", "street_bost64")


@pytest.mark.parametrize("place", ["", "SiftFlowDataset"])
def test_sift_flow(tmp_path, rng, place):
    root = tmp_path / "m" / place
    written = sift_flow_tree(root, rng, SIFT_IDS)
    random_image(root / f"Images/{INNER}/highway_bost181.jpg", rng, (9, 9))
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    trainval, test = (open_source("sift_flow", split, **where) for split in ("trainval", "test"))
    assert trainval.ids == ("forest_for121", "street_bost64")
    assert test.ids == ("coast_natu975", "insidecity_art947")
    for source in (trainval, test):
        assert source.features == ("image",)
        assert source.heads == {"sem": SIFT_FLOW_SEMANTIC, "geo": SIFT_FLOW_GEOMETRIC}
        assert list(source.heads) == ["sem", "geo"]
        assert source.classes == SIFT_FLOW_SEMANTIC
        assert_equal(source, written, ("image", "sem", "geo"))
        assert_equal(pickle.loads(pickle.dumps(source)), written, ("image", "sem", "geo"))
    notes = "\n".join(trainval.notes)
    assert "trainval has 2 of the 2486 images" in notes
    assert "left out for lack of annotations: highway_bost181" in notes
    check_disjoint(trainval, test)


def test_sift_flow_lists_in_the_tree_win(tmp_path, rng):
    names = ("a", "b", "highway_bost181", "c", "street_urb506")
    sift_flow_tree(tmp_path / "m", rng, names)
    write_list(tmp_path / "m/trainval.txt", names[:3])
    write_list(tmp_path / "m/test.txt", names[3:])
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    assert open_source("sift_flow", "trainval", **where).ids == ("a", "b")
    assert open_source("sift_flow", "test", **where).ids == ("c",)
    write_list(tmp_path / "m/test.txt", ["c", "a"])
    with pytest.raises(ValueError, match=r"1 images are in both trainval\.txt and test\.txt: a"):
        prepare("sift_flow", **where)


def test_sift_flow_lists_are_the_published_ones(shared):
    for split, size in (("trainval", 2486), ("test", 200)):
        published = (shared / f"data/splits/sift-flow/{split}.txt").read_text().split()
        assert package_ids(f"sift_flow_{split}") == published
        assert len(published) == size
        assert not {"highway_bost181", "street_urb506"} & set(published)


def test_sift_flow_leaves_absent_classes_out_of_the_mean():
    names = SIFT_FLOW_SEMANTIC.names
    assert set(range(33)) - set(SIFT_FLOW_SEMANTIC.scored) == {
        names.index(name) for name in ("cow", "desert", "moon")
    }
    assert SIFT_FLOW_GEOMETRIC.scored == (0, 1, 2)


@pytest.mark.parametrize("folder", ["Images", "SemanticLabels", "GeoLabels"])
def test_sift_flow_without_a_folder(tmp_path, rng, folder):
    sift_flow_tree(tmp_path / "m", rng, SIFT_IDS)
    shutil.rmtree(tmp_path / "m" / folder)
    with pytest.raises(FileNotFoundError, match=rf"no folder {folder}/spatial.*SiftFlowDataset"):
        prepare("sift_flow", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")


def test_sift_flow_ids_of_no_class_are_named(tmp_path, rng):
    sift_flow_tree(tmp_path / "m", rng, SIFT_IDS)
    with Image.open(tmp_path / f"m/Images/{INNER}/street_bost64.jpg") as image:
        size = image.size[::-1]
    save_mat(tmp_path / f"m/GeoLabels/{INNER}/street_bost64.mat", "S", np.full(size, 4))
    with pytest.raises(ValueError, match=r"GeoLabels.*street_bost64\.mat: S: label values 4"):
        prepare("sift_flow", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")


# ---- PASCAL-Context


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


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2010"])
def test_pascal_context(tmp_path, rng, place):
    written, ids = context_tree(tmp_path / "m", rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m" / place}
    for split, names in {**ids, "trainval": [*ids["train"], *ids["val"]]}.items():
        source = open_source("pascal_context", split, **where)
        assert source.ids == tuple(names)
        assert source.heads == {"label": PASCAL_CONTEXT}
        assert_equal(source, written, ("image", "label"))
    assert "train has 2 of the 4998 images" in "\n".join(source.notes)


@pytest.mark.parametrize("given", [False, True])
def test_pascal_context_apart_from_voc(tmp_path, rng, given):
    written, _ = context_tree(tmp_path / "m", rng)
    place = tmp_path / ("elsewhere" if given else "m/pascal-context")
    place.mkdir()
    for name in ("trainval", "labels.txt"):
        shutil.move(tmp_path / "m" / name, place / name)
    options = {"context": str(place)} if given else {}
    source = open_source(
        "pascal_context", "val", data_dir=tmp_path / "d", manual_dir=tmp_path / "m", **options
    )
    assert_equal(source, written, ("image", "label"))


def test_pascal_context_names_are_the_published_ones(shared):
    lines = (shared / "data/splits/pascal-context/classes-59.txt").read_text().splitlines()
    assert PASCAL_CONTEXT.names == tuple(line.split(": ")[1] for line in lines)


def test_pascal_context_says_all_that_is_missing(tmp_path, rng):
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    (tmp_path / "m").mkdir()
    message = r"VOC2010.*VOCtrainval_03-May-2010\.tar.*trainval of ID\.mat.*roozbeh/pascal-context"
    with pytest.raises(FileNotFoundError, match=message):
        prepare("pascal_context", **where)
    context_tree(tmp_path / "m", rng)
    labels = tmp_path / "m/labels.txt"
    text = labels.read_text()
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing .*m/labels\.txt, from https"):
        prepare("pascal_context", **where)
    labels.write_text(text.replace(": cloth\n", ": clothing\n").replace(": dog\n", ": cat2\n"))
    with pytest.raises(ValueError, match=r"labels\.txt: no label is called dog, cloth"):
        prepare("pascal_context", **where)
    labels.write_text("1 accordion\n")
    with pytest.raises(ValueError, match=r"labels\.txt, line 1: expected 'NUMBER: NAME'"):
        prepare("pascal_context", **where)


# ---- SBD alone


@pytest.mark.parametrize("place", ["", "benchmark_RELEASE/dataset"])
def test_sbd(tmp_path, rng, place):
    root = tmp_path / "m" / place
    ids = {"train": ["2008_000002", "2010_000001"], "val": ["2009_000009"]}
    written = {}
    for split, names in ids.items():
        write_list(root / f"{split}.txt", [*names, f"absent_{split}"])
        for name in names:
            size = random_size(rng)
            label = rng.integers(0, 21, size).astype(np.uint8)
            (root / "cls").mkdir(parents=True, exist_ok=True)
            fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": label}
            scipy.io.savemat(root / f"cls/{name}.mat", {"GTcls": fields})
            image = random_image(root / f"img/{name}.jpg", rng, size)
            written[name] = {"image": image, "label": label}
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    for split, names in ids.items():
        source = open_source("sbd", split, **where)
        assert source.ids == tuple(names)
        assert source.heads == {"label": VOC}
        assert_equal(source, written, ("image", "label"))
    assert "val has 1 of the 2857 images" in "\n".join(source.notes)
    write_list(root / "val.txt", ids["train"][:1])
    with pytest.raises(ValueError, match=r"1 images are in both train\.txt and val\.txt"):
        prepare("sbd", **where)
    shutil.rmtree(root / "cls")
    with pytest.raises(FileNotFoundError, match=r"no folder cls .*benchmark\.tgz.*train\.txt"):
        prepare("sbd", **where)


def test_real_voc_labels_as_sbd(shared, tmp_path):
    """A real photograph, with its label as SBD would store it, is read as VOC's own is."""
    devkit = shared / "data/VOCdevkit/VOC2012"
    voc = open_source("voc2012", "val[:3]", data_dir=tmp_path / "d", manual_dir=devkit)
    root = tmp_path / "m"
    (root / "cls").mkdir(parents=True)
    (root / "img").mkdir()
    for example in voc:
        ids = np.where(example["label"] == 255, 0, example["label"])  # SBD has no void
        fields = {"Segmentation": ids.astype(np.uint8)}
        scipy.io.savemat(root / f"cls/{example['id']}.mat", {"GTcls": fields})
        shutil.copy(devkit / f"JPEGImages/{example['id']}.jpg", root / "img")
    write_list(root / "val.txt", voc.ids)
    sbd = open_source("sbd", "val", data_dir=tmp_path / "d", manual_dir=root)
    assert sbd.digests == voc.digests
    for ours, theirs in zip(sbd, voc, strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        counts = theirs["label"] != 255
        np.testing.assert_array_equal(ours["label"][counts], theirs["label"][counts])
    with pytest.raises(ValueError, match="are also in"):
        check_disjoint(sbd, voc)


# ---- All of them


def test_the_documentation_has_every_data_set():
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    for name in (*DATASETS, "tfds:NAME"):
        assert f"| `{name}` |" in text
        if name != "folder":  # which has a page of its own
            assert f"## `{name}`" in text


@pytest.mark.parametrize("name", ["nyudv2", "sift_flow", "pascal_context", "sbd"])
def test_without_files_the_message_says_what_to_put_where(tmp_path, name):
    for manual_dir in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^{name}: .*http") as caught:
            prepare(name, data_dir=tmp_path / "d", manual_dir=manual_dir)
        assert "manual_dir" in str(caught.value)
        assert manual_dir is None or str(manual_dir) in str(caught.value)


def test_a_copy_of_an_earlier_version_is_not_read(tmp_path, rng):
    nyu_tree(tmp_path / "m", rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    path = prepare("nyudv2", **where)
    path.rename(path.with_name("1.0.0"))
    with pytest.raises(FileNotFoundError, match="nyudv2: no data"):
        prepare("nyudv2", data_dir=tmp_path / "d")
    assert prepare("nyudv2", **where) == path


def test_preprocessing_is_the_references():
    """B, G, R means of the reference implementation's data layers."""
    assert DATASETS["nyudv2"].preprocessing["image"].mean == (116.190, 97.203, 92.318)
    hha, depth = (DATASETS["nyudv2"].preprocessing[name] for name in ("hha", "depth"))
    assert hha.channel_order == "rgb"  # the reference does not flip HHA
    assert hha.mean == (132.431, 94.076, 118.477)
    assert (depth.mean, depth.std, depth.log) == ((7.844,), (1.0,), True)
    assert DATASETS["sift_flow"].preprocessing["image"].mean == (114.578, 115.294, 108.353)
    assert DATASETS["pascal_context"].preprocessing["image"].mean == (104.007, 116.669, 122.679)
    assert row_of("tfds:anything").preprocessing == {}


# ---- MATLAB files


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, bool])
def test_read_mat_of_any_type(tmp_path, rng, dtype):
    values = rng.integers(0, 2 if dtype is bool else 100, (5, 7)).astype(dtype)
    save_mat(tmp_path / "a.mat", "S", values, dtype)
    read = read_mat(tmp_path / "a.mat", "S")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, values)


def test_read_mat_of_version_7_3(tmp_path, rng):
    h5py = pytest.importorskip("h5py")
    values = rng.integers(0, 100, (5, 7)).astype(np.uint8)
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["S"] = values.T  # MATLAB stores columns first
        file["GTcls/Segmentation"] = values.T + 1
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as file:
        file.write(header)
    np.testing.assert_array_equal(read_mat(path, "S"), values)
    np.testing.assert_array_equal(read_mat(path, "GTcls/Segmentation"), values + 1)
    with pytest.raises(ValueError, match=r"a\.mat: cannot read T"):
        read_mat(path, "T")


def test_read_mat_refuses_what_is_no_map_of_ids(tmp_path):
    contents = {
        "fractions": np.full((2, 2), 0.5),
        "volume": np.zeros((2, 2, 2)),
        "text": "words",
        "infinite": np.full((2, 2), np.inf),
    }
    scipy.io.savemat(tmp_path / "a.mat", contents)
    for name in contents:
        with pytest.raises(ValueError, match=rf"a\.mat: .*{name}"):
            read_mat(tmp_path / "a.mat", name)
    with pytest.raises(FileNotFoundError, match=r"b\.mat"):
        read_mat(tmp_path / "b.mat", "S")
