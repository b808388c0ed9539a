"""SBD by itself, from small trees in its published layout."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import scipy.io
from dataset_trees import assert_holds, random_image, random_size, write_list

from fcn_jax.data import check_disjoint, open_source, prepare
from fcn_jax.data.voc import VOC


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
        assert source.label_maps == {"label": VOC}
        assert_holds(source, written, ("image", "label"))
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
