"""The class tables of the published data sets, and which classes enter the means."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from fcn_jax.classes import ClassRow, ClassTable, load_class_table, table_from_names
from fcn_jax.data.camvid import CAMVID
from fcn_jax.data.nyudv2 import NYUDV2
from fcn_jax.data.pascal_context import PASCAL_CONTEXT
from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC, SIFT_FLOW_SEMANTIC
from fcn_jax.data.tfds import CITYSCAPES, OXFORD_IIIT_PET, SCENE_PARSE_150, SCENE_PARSE_OBJECTS
from fcn_jax.data.voc import VOC

TABLES = {
    "nyudv2": (NYUDV2, 40, 1),
    "sift_flow sem": (SIFT_FLOW_SEMANTIC, 33, 1),
    "sift_flow geo": (SIFT_FLOW_GEOMETRIC, 3, 1),
    "pascal_context": (PASCAL_CONTEXT, 60, 0),
    "oxford_iiit_pet": (OXFORD_IIIT_PET, 2, 1),
    "scene_parse150": (SCENE_PARSE_150, 150, 1),
    "scene parsing objects": (SCENE_PARSE_OBJECTS, 101, 0),
}


@pytest.mark.parametrize("name", TABLES)
def test_number_of_classes_and_ids_without_gaps(name):
    table, classes, first = TABLES[name]
    assert table.num_classes == classes
    raw = np.arange(first, first + classes)
    np.testing.assert_array_equal(table.to_labels(raw), np.arange(classes))
    if first == 1 and table is not OXFORD_IIIT_PET:
        assert table.to_labels(np.zeros(1, int)).tolist() == [255]
    with pytest.raises(ValueError, match="belong to no class"):
        table.to_labels(np.array([classes + 2]))


def test_names_are_the_published_ones(shared):
    folder = shared / "data/splits"
    nyud = (folder / "nyud/classes.txt").read_text().split("\n\n")[0].splitlines()
    assert NYUDV2.names == tuple(nyud)
    text = (folder / "sift-flow/classes.txt").read_text()
    names = re.findall(r"^\d\d (.+)$", text, re.MULTILINE)
    assert SIFT_FLOW_SEMANTIC.names + SIFT_FLOW_GEOMETRIC.names == tuple(names)
    pascal = (folder / "pascal/classes.txt").read_text().split("\n\n")[0].split()
    assert VOC.names == tuple(pascal)


def test_scored_is_all_that_counts_unless_a_row_says_no():
    assert CAMVID.scored == tuple(range(11))
    table = ClassTable(
        (
            ClassRow("a", (1, 1, 1)),
            ClassRow("void", (2, 2, 2), ignored=True, scored=False),
            ClassRow("b", (3, 3, 3), scored=False),
            ClassRow("c", (4, 4, 4)),
        )
    )
    assert table.scored == (0, 2)  # labels, which void rows do not number
    with pytest.raises(ValueError, match="needs a class that is scored"):
        ClassTable((ClassRow("a", (1, 1, 1), scored=False),))


@pytest.mark.parametrize("table", [SIFT_FLOW_SEMANTIC, CITYSCAPES, VOC])
def test_tables_survive_json(table):
    again = ClassTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again == table
    assert again.scored == table.scored


def test_tables_of_before_there_was_scored_are_read():
    fields = VOC.to_dict()
    for row in fields["classes"]:
        del row["scored"]
    assert ClassTable.from_dict(fields) == VOC


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_class_files_may_leave_classes_out_of_the_mean(tmp_path, kind):
    path = tmp_path / f"classes.{kind}"
    if kind == "csv":
        path.write_text("name,scored\nsky,\ncow,false\nmoon,0\nsea,true\n")
    else:
        rows = [{"name": "sky"}, {"name": "cow", "scored": False}]
        rows += [{"name": "moon", "scored": 0}, {"name": "sea", "scored": True}]
        path.write_text(json.dumps(rows))
    table = load_class_table(path)
    assert [table.names[label] for label in table.scored] == ["sky", "sea"]
    assert load_class_table_again(tmp_path, table) == table


def load_class_table_again(folder, table: ClassTable) -> ClassTable:
    (folder / "again.json").write_text(json.dumps(table.to_dict()))
    return load_class_table(folder / "again.json")


def test_with_void():
    table = table_from_names(["a", "b", "c"], first_id=1).with_void((2, 9, 255))
    assert table.names == ("a", "c")
    raw = np.array([[1, 2, 3], [9, 255, 1]])
    assert table.to_labels(raw).tolist() == [[0, 255, 1], [255, 255, 0]]
    assert VOC.with_void(()) == VOC
