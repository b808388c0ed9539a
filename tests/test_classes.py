"""Class tables: labels, colours, files of classes, and the tables of the published data sets."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from fcn_jax.classes import (
    ClassRow,
    ClassTable,
    has_colors,
    load_class_table,
    read_names,
    table_from_names,
    voc_color,
)
from fcn_jax.data import usual_names
from fcn_jax.data.camvid import CAMVID
from fcn_jax.data.nyudv2 import NYUDV2
from fcn_jax.data.pascal_context import PASCAL_CONTEXT
from fcn_jax.data.shapes import SHAPES
from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC, SIFT_FLOW_SEMANTIC
from fcn_jax.data.tfds import CITYSCAPES, OXFORD_IIIT_PET, SCENE_PARSE_150, SCENE_PARSE_OBJECTS
from fcn_jax.data.voc import VOC

TABLE = ClassTable(
    (
        ClassRow("edge", (9, 9, 9), ignored=True),
        ClassRow("road", (128, 64, 128), id=7),
        ClassRow("car", (0, 0, 142), id=26),
    )
)


# ---- Tables


def test_published_tables():
    assert (SHAPES.num_classes, CAMVID.num_classes, VOC.num_classes) == (6, 11, 21)
    assert VOC.names[15] == "person"
    # From the development kit's palette: aeroplane, bicycle, bird, person, tvmonitor.
    for label, color in {
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }.items():
        assert tuple(VOC.palette[label]) == color
    assert CAMVID.to_labels(np.arange(12)).tolist() == [*range(11), 255]


def test_voc_colors_are_all_different():
    assert len({voc_color(i) for i in range(256)}) == 256


def test_labels_are_counted_in_table_order():
    assert TABLE.names == ("road", "car")
    raw = np.array([[0, 7, 26], [255, 26, 7]], np.int32)
    np.testing.assert_array_equal(TABLE.to_labels(raw), [[255, 0, 1], [255, 1, 0]])
    assert TABLE.to_labels(raw).dtype == np.uint8
    assert tuple(TABLE.palette[1]) == (0, 0, 142)
    assert tuple(TABLE.palette[255]) == (9, 9, 9)


@pytest.mark.parametrize("value", [-2, 1, 8, 254, 65535, 70000, 2**31 - 1])
def test_unknown_ids_are_refused(value):
    with pytest.raises(ValueError, match=rf"values {value} belong.*0, 7, 26"):
        TABLE.to_labels(np.array([[7, value]], np.int32))


def test_many_unknown_ids_are_listed_from_the_smallest():
    raw = np.arange(3_000_000)[::-1].reshape(1500, 2000)
    with pytest.raises(ValueError, match=r"values 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, \.\.\. belong"):
        TABLE.to_labels(raw)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int64, np.uint64])
def test_labels_of_every_integer_type_and_of_many_pixels(rng, dtype):
    places = rng.integers(0, 3, (1201, 1103))[:, ::-1]
    raw = np.array([0, 7, 26], dtype)[places]
    np.testing.assert_array_equal(TABLE.to_labels(raw), np.array([255, 0, 1])[places])
    assert TABLE.to_labels(np.zeros((0, 3), dtype)).shape == (0, 3)


def test_minus_one_is_void_everywhere():
    assert TABLE.to_labels(np.array([[7, -1]], np.int16)).tolist() == [[0, 255]]
    assert VOC.to_labels(np.array([-1, 20, 255])).tolist() == [255, 20, 255]
    assert VOC.void_ids == (-1, 255)
    assert TABLE.void_ids == (-1, 0, 255)
    row = ClassRow("none", (0, 0, 0), ignored=True, id=-1)
    assert ClassTable((row, ClassRow("a", (1, 1, 1)))).to_labels(np.array([-1, 1])).tolist() == [
        255,
        0,
    ]


def test_a_class_that_has_id_255_takes_it_from_void():
    """Masks in black and white: 0 is the background, 255 the thing."""
    table = table_from_names(["background", "person"]).with_ids((0, 255))
    assert table.to_labels(np.array([[0, 255, -1]])).tolist() == [[0, 1, 255]]
    assert table.void_ids == (-1,)
    assert ClassTable.from_dict(table.to_dict()) == table
    with pytest.raises(ValueError, match=r"values 1 .*known ids: 0, 255; -1 is void"):
        table.to_labels(np.array([1]))
    assert table.with_void((255,)).names == ("background",)


@pytest.mark.parametrize("table", [SHAPES, CAMVID, CITYSCAPES, SIFT_FLOW_SEMANTIC, VOC, TABLE])
def test_json_round_trip(table):
    again = ClassTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again == table
    assert again.scored == table.scored
    assert hash(again) == hash(table)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "0"),
        ((ClassRow("a", (0, 0, 0)), ClassRow("a", (1, 1, 1))), "same name: a"),
        ((ClassRow("a", (0, 0, 0)), ClassRow("b", (1, 1, 1), id=0)), "same id: 0"),
        ((ClassRow("a", (0, 0, 256)),), "'a': colour"),
        ((ClassRow("a", (0, 0, 0), id=65536),), "65536 is not in"),
        ((ClassRow("a", (0, 0, 0), id=-1),), "-1 is not in"),
        (tuple(ClassRow(str(i), (0, 0, 0)) for i in range(256)), "256"),
    ],
)
def test_bad_tables(rows, message):
    with pytest.raises(ValueError, match=message):
        ClassTable(rows)


# ---- Tables of data sets

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
    context = (folder / "pascal-context/classes-59.txt").read_text().splitlines()
    assert PASCAL_CONTEXT.names == tuple(line.split(": ")[1] for line in context)


def test_names_by_the_number_of_classes():
    tables = (VOC, NYUDV2, SIFT_FLOW_SEMANTIC, SIFT_FLOW_GEOMETRIC, PASCAL_CONTEXT)
    assert all(usual_names(table.num_classes) == list(table.names) for table in tables)
    assert usual_names(2) == ["class 0", "class 1"]


def test_sift_flow_leaves_absent_classes_out_of_the_mean():
    names = SIFT_FLOW_SEMANTIC.names
    unscored = set(range(33)) - set(SIFT_FLOW_SEMANTIC.scored)
    assert {names[label] for label in unscored} == {"cow", "desert", "moon"}
    assert SIFT_FLOW_GEOMETRIC.scored == (0, 1, 2)


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
    (tmp_path / "again.json").write_text(json.dumps(table.to_dict()))
    assert load_class_table(tmp_path / "again.json") == table


def test_with_void():
    table = table_from_names(["a", "b", "c"], first_id=1).with_void((2, 9, 255))
    assert table.names == ("a", "c")
    raw = np.array([[1, 2, 3], [9, 255, 1]])
    assert table.to_labels(raw).tolist() == [[0, 255, 1], [255, 255, 0]]
    assert VOC.with_void(()) == VOC


# ---- Files of class tables

EXPECTED = ClassTable(
    (
        ClassRow("road", (128, 64, 128), id=0),
        ClassRow("car", (0, 0, 142), id=1),
        ClassRow("edge", (9, 9, 9), ignored=True, id=2),
    )
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "name,r,g,b,ignored\nroad,128,64,128,\ncar,0,0,142,\nedge,9,9,9,true\n"),
        ("c.csv", "\ufeffName;R;G;B;Ignored\nroad;128;64;128;\ncar;0;0;142;\nedge;9;9;9;1\n"),
        ("c.csv", "id, name, color, ignored\n0, road, #804080,\n1,car,0 0 142\n2,edge,9 9 9,yes\n"),
        (
            "c.json",
            '[{"name":"road","color":[128,64,128]},{"name":"car","color":"0,0,142"},'
            '{"name":"edge","color":"#090909","ignored":true}]',
        ),
        ("c.json", json.dumps(EXPECTED.to_dict())),
    ],
)
def test_class_files_with_colors(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_class_table(tmp_path / name) == EXPECTED
    assert has_colors(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"), [("c.txt", "road\n\n car \n"), ("c.json", '["road", "car"]')]
)
def test_class_files_of_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert load_class_table(tmp_path / name, first_id=1) == table_from_names(["road", "car"], 1)
    assert not has_colors(tmp_path / name)


def test_class_file_of_colors_by_name(tmp_path):
    (tmp_path / "c.json").write_text('{"road": [1, 2, 3], "car": "#040506"}')
    assert load_class_table(tmp_path / "c.json").palette[:2].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_class_file_may_give_255_to_a_class(tmp_path):
    (tmp_path / "c.csv").write_text("id,name\n0,background\n255,person\n")
    assert load_class_table(tmp_path / "c.csv").ids == (0, 255)
    names = "\n".join(f"class {i}" for i in range(255))
    (tmp_path / "c.txt").write_text(names)
    with pytest.raises(ValueError, match="row 255, class 'class 254': id 255 is void, unless"):
        load_class_table(tmp_path / "c.txt", first_id=1)


BAD = {
    "no header": ("c.csv", "road,1,2,3\n", "must name the columns"),
    "empty csv": ("c.csv", "", "must name the columns"),
    "colour of words": ("c.csv", "name,r,g,b\nroad,1,2,red\n", "row 1, class 'road': red is not"),
    "one name twice": ("c.csv", "name,r,g,b\nroad,1,2,3\nroad,4,5,6\n", "same name: road"),
    "one column twice": ("c.csv", "name,id,ID\nroad,1,2\n", "'id' is given twice"),
    "unknown column": ("c.csv", "name,ignore\nroad,1\n", "'ignore' is no column; there are name,"),
    "more cells than columns": ("c.csv", "name,r,g,b\na,b,1,2,3\n", "line 2 has a cell in"),
    "long field": ("c.csv", f"name\n{'a' * 140_000}\n", "field larger than field limit"),
    "long name": ("c.txt", "a" * 201, "row 1: 'aaaa.* is no name of up to 200"),
    "open quote": ("c.csv", 'name\n"road\n', "unexpected end of data"),
    "half a number": ("c.csv", "name,id\nroad,1\ncar,1.5\n", "row 2, class 'car': 1.5 is not a"),
    "negative": ("c.csv", "name,id\nroad,-2\n", "'road': id -2 is not in 0..65535"),
    "no truth": (
        "c.csv",
        "name,ignored\nroad,perhaps\n",
        "ignored is true or false, not 'perhaps'",
    ),
    "two colours": ("c.csv", "name,color,r\nroad,#000000,3\n", "colour is given twice"),
    "csv called txt": ("c.txt", "name,r,g,b\nroad,1,2,3\n", r"call it c\.csv"),
    "cut": ("c.json", "{", "line 1 column 2"),
    "number": ("c.json", "3", "neither a list nor an object"),
    "no name": ("c.json", '[{"color": [1, 2, 3]}]', "row 1 has no name"),
    "numbers": ("c.json", "[1, 2]", "row 1: 1 is neither"),
    "infinite": ("c.json", '[{"name": "a", "id": 1e400}]', "class 'a': inf is not a whole"),
    "infinite colour": ("c.json", '{"a": [1, 2, 1e400]}', "class 'a': inf is not a whole"),
    "Infinity": ("c.json", '{"a": [1, 2, Infinity]}', "Infinity is no number"),
    "NaN": ("c.json", '[{"name": "a", "id": NaN}]', "NaN is no number"),
    "whole but not written so": ("c.json", '{"a": [1.0, 0, 0]}', "1.0 is not a whole number"),
    "truth as a number": ("c.json", '[{"name": "a", "id": true}]', "True is not a whole number"),
    "ids by name": ("c.json", '{"a": 0, "b": 1}', "class 'a': colour 0 is not r, g, b"),
    "brackets": ("c.json", "[" * 100_000, "recursion"),
    "key twice": ("c.json", '{"a": [1, 2, 3], "a": [4, 5, 6]}', "'a' is given twice"),
    "half a letter": ("c.json", '["\\ud800"]', "row 1: .* is no name"),
    "line break": ("c.json", '["a\\nb"]', "row 1: .* is no name"),
    "huge number": ("c.json", f'[{{"name": "a", "id": {"9" * 4000}}}]', "class 'a': id 9999"),
    "empty": ("c.txt", "", "needs 1 to 255 classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_class_files_are_named_in_one_line(tmp_path, case):
    name, text, message = BAD[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: not a class table: .*{message}") as caught:
        load_class_table(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp1252"])
def test_class_files_of_other_encodings_are_refused(tmp_path, encoding):
    (tmp_path / "c.csv").write_bytes("name\nStraße\n道路".encode(encoding, "replace"))
    if encoding != "utf-16-le":  # whose bytes are letters with zeros between: no column is "name"
        with pytest.raises(ValueError, match=r"c\.csv: .*not UTF-8 text .*save it as UTF-8"):
            load_class_table(tmp_path / "c.csv")
    with pytest.raises(ValueError, match=r"c\.csv: not a class table"):
        load_class_table(tmp_path / "c.csv")
    (tmp_path / "names.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names\.txt: not a list of names: not UTF-8"):
        read_names(tmp_path / "names.txt")


def test_large_files_are_not_read(tmp_path):
    with (tmp_path / "c.csv").open("wb") as file:
        file.truncate(1 << 34)
    for read in (load_class_table, read_names):
        with pytest.raises(ValueError, match=r"c\.csv: .*more than 4 MiB"):
            read(tmp_path / "c.csv")


@pytest.mark.parametrize(
    "fields", [{}, {"classes": 3}, {"classes": [{"name": "a"}]}, {"classes": [{"a": 1}]}]
)
def test_a_damaged_table_is_a_value_error(fields):
    with pytest.raises(ValueError, match="not a class table"):
        ClassTable.from_dict(fields)
