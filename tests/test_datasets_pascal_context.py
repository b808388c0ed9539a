"""PASCAL-Context from small trees in its published layout."""

from __future__ import annotations

import shutil

import pytest
from dataset_trees import assert_holds, context_tree

from fcn_jax.data import open_source, prepare
from fcn_jax.data.pascal_context import PASCAL_CONTEXT


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2010"])
def test_pascal_context(tmp_path, rng, place):
    written, ids = context_tree(tmp_path / "m", rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m" / place}
    for split, names in {**ids, "trainval": [*ids["train"], *ids["val"]]}.items():
        source = open_source("pascal_context", split, **where)
        assert source.ids == tuple(names)
        assert source.label_maps == {"label": PASCAL_CONTEXT}
        assert_holds(source, written, ("image", "label"))
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
    assert_holds(source, written, ("image", "label"))


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
