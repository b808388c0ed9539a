"""SIFT Flow from small trees in its published layout."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from dataset_trees import (
    SIFT_FLOW_FOLDER,
    SIFT_FLOW_IDS,
    assert_holds,
    random_image,
    save_mat,
    sift_flow_tree,
    write_list,
)
from PIL import Image

from fcn_jax.data import check_disjoint, open_source, prepare
from fcn_jax.data.files import package_ids
from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC, SIFT_FLOW_SEMANTIC


@pytest.mark.parametrize("place", ["", "SiftFlowDataset"])
def test_sift_flow(tmp_path, rng, place):
    root = tmp_path / "m" / place
    written = sift_flow_tree(root, rng, SIFT_FLOW_IDS)
    random_image(root / f"Images/{SIFT_FLOW_FOLDER}/highway_bost181.jpg", rng, (9, 9))
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    trainval, test = (open_source("sift_flow", split, **where) for split in ("trainval", "test"))
    assert trainval.ids == ("forest_for121", "street_bost64")
    assert test.ids == ("coast_natu975", "insidecity_art947")
    for source in (trainval, test):
        assert source.modalities == ("image",)
        assert source.label_maps == {"sem": SIFT_FLOW_SEMANTIC, "geo": SIFT_FLOW_GEOMETRIC}
        assert list(source.label_maps) == ["sem", "geo"]
        assert source.classes == SIFT_FLOW_SEMANTIC
        assert_holds(source, written, ("image", "sem", "geo"))
        assert_holds(pickle.loads(pickle.dumps(source)), written, ("image", "sem", "geo"))
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
    sift_flow_tree(tmp_path / "m", rng, SIFT_FLOW_IDS)
    shutil.rmtree(tmp_path / "m" / folder)
    with pytest.raises(FileNotFoundError, match=rf"no folder {folder}/spatial.*SiftFlowDataset"):
        prepare("sift_flow", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")


def test_sift_flow_ids_of_no_class_are_named(tmp_path, rng):
    sift_flow_tree(tmp_path / "m", rng, SIFT_FLOW_IDS)
    with Image.open(tmp_path / f"m/Images/{SIFT_FLOW_FOLDER}/street_bost64.jpg") as image:
        size = image.size[::-1]
    save_mat(tmp_path / f"m/GeoLabels/{SIFT_FLOW_FOLDER}/street_bost64.mat", "S", np.full(size, 4))
    with pytest.raises(ValueError, match=r"GeoLabels.*street_bost64\.mat: S: label values 4"):
        prepare("sift_flow", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")
