"""Class tables and the reading of image and label files."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from fcn_jax.classes import (
    ClassRow,
    ClassTable,
    has_colors,
    load_class_table,
    table_from_names,
    voc_color,
)
from fcn_jax.data.camvid import CAMVID
from fcn_jax.data.images import encoded_image, image_files, read_image, read_label
from fcn_jax.data.shapes import SHAPES
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


@pytest.mark.parametrize("value", [-1, 1, 8, 254, 65535, 70000])
def test_unknown_ids_are_refused(value):
    with pytest.raises(ValueError, match=rf"values {value} belong.*0, 7, 26"):
        TABLE.to_labels(np.array([[7, value]], np.int32))


@pytest.mark.parametrize("table", [SHAPES, CAMVID, VOC, TABLE])
def test_json_round_trip(table):
    again = ClassTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again == table
    assert hash(again) == hash(table)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "0"),
        ((ClassRow("a", (0, 0, 0)), ClassRow("a", (1, 1, 1))), "same name: a"),
        ((ClassRow("a", (0, 0, 0)), ClassRow("b", (1, 1, 1), id=0)), "same id: 0"),
        ((ClassRow("a", (0, 0, 256)),), "'a': colour"),
        ((ClassRow("a", (0, 0, 0), id=255),), "kept for void"),
        (tuple(ClassRow(str(i), (0, 0, 0)) for i in range(256)), "256"),
    ],
)
def test_bad_tables(rows, message):
    with pytest.raises(ValueError, match=message):
        ClassTable(rows)


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "road,1,2,3\n"),
        ("c.csv", ""),
        ("c.csv", "name,r,g,b\nroad,1,2,red\n"),
        ("c.csv", "name,r,g,b\nroad,1,2,3\nroad,4,5,6\n"),
        ("c.json", "{"),
        ("c.json", "3"),
        ("c.json", '[{"color": [1, 2, 3]}]'),
        ("c.json", "[1, 2]"),
        ("c.txt", ""),
    ],
)
def test_bad_class_files_are_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: not a class table"):
        load_class_table(tmp_path / name)


# ---- Images


def write(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("size", [(1, 1), (7, 13)])
def test_modes_without_loss(tmp_path, rng, size):
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    grey = rgb[..., 0]
    alpha = rng.integers(0, 256, (*size, 1), np.uint8)
    repeated = np.repeat(grey[..., None], 3, -1)
    files = {
        write(tmp_path / "rgb.png", rgb): rgb,
        write(tmp_path / "rgba.png", np.concatenate([rgb, alpha], -1)): rgb,
        write(tmp_path / "grey.png", grey): repeated,
        write(tmp_path / "grey16.png", grey.astype(np.uint16) * 257): repeated,
        write(tmp_path / "float.tiff", grey.astype(np.float32) / 255): repeated,
        write(tmp_path / "bit.png", (grey > 99) * np.uint8(255), "1"): (repeated > 99) * 255,
        write(tmp_path / "cmyk.tiff", rgb, "CMYK"): rgb,
    }
    palette = Image.fromarray(grey % 4, mode="L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([v for color in VOC.palette[:4] for v in color.tolist()])
    palette.save(tmp_path / "palette.png")
    files[tmp_path / "palette.png"] = VOC.palette[grey % 4]
    for path, expected in files.items():
        image = read_image(path)
        assert image.dtype == np.uint8, path.name
        np.testing.assert_array_equal(image, expected, err_msg=path.name)
        content, size_read = encoded_image(path)
        assert size_read == size
        np.testing.assert_array_equal(read_image(content), expected, err_msg=path.name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, rng, orientation):
    rgb = rng.integers(0, 256, (5, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a.png", rgb, exif=exif)
    turned = {  # the definition in the EXIF standard: where row 0 and column 0 of the file belong
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb, 1),
    }[orientation]
    np.testing.assert_array_equal(read_image(path), turned)
    content, size = encoded_image(path)
    assert size == turned.shape[:2]
    np.testing.assert_array_equal(read_image(content), turned)


def test_broken_images_are_named(tmp_path, rng):
    write(tmp_path / "good.png", rng.integers(0, 256, (40, 40, 3), np.uint8))
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "text.jpg", "empty.png"):
        for read in (read_image, read_label, encoded_image):
            with pytest.raises(ValueError, match=name):
                read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")


def test_image_files_are_sorted_and_other_files_left(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "c.tif"):
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path)] == ["a.png", "b.JPG", "c.tif"]


# ---- Labels


def test_label_files_of_ids(tmp_path, rng):
    ids = rng.integers(0, 3, (6, 11)).astype(np.uint8)
    palette = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    palette.putpalette(VOC.palette.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    write(tmp_path / "grey.png", ids)
    write(tmp_path / "wide.png", ids.astype(np.uint16) * 300)
    write(tmp_path / "rgb.png", np.repeat(ids[..., None], 3, -1))
    Image.merge("LA", [Image.fromarray(ids)] * 2).save(tmp_path / "alpha.png")
    for name, factor in {"palette": 1, "grey": 1, "wide": 300, "rgb": 1, "alpha": 1}.items():
        np.testing.assert_array_equal(
            read_label(tmp_path / f"{name}.png"), ids.astype(int) * factor, err_msg=name
        )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_label_files_of_colors(tmp_path, rng, mode):
    ids = rng.choice([0, 7, 26], (6, 11))
    colors = {0: (9, 9, 9), 7: (128, 64, 128), 26: (0, 0, 142)}
    rgb = np.array([[colors[i] for i in row] for row in ids.tolist()], np.uint8)
    image = Image.fromarray(rgb)
    (image.quantize(3) if mode == "P" else image.convert(mode)).save(tmp_path / "m.png")
    kind = "color" if mode == "P" else "auto"
    np.testing.assert_array_equal(read_label(tmp_path / "m.png", TABLE, kind), ids)


def test_colors_of_no_class_are_listed(tmp_path):
    rgb = np.array([[(9, 9, 9), (1, 2, 3)]], np.uint8)
    path = write(tmp_path / "m.png", rgb)
    with pytest.raises(ValueError, match=r"m\.png.*no class: \(1, 2, 3\)"):
        read_label(path, TABLE)
    with pytest.raises(ValueError, match=r"m\.png.*name,r,g,b"):
        read_label(path)


def test_jpeg_labels_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match=r"mask\.jpg.*PNG"):
        read_label(buffer.getvalue(), name="mask.jpg")


def test_published_label_as_index_and_as_color(shared):
    """VOC's own palette PNG holds ids; the same drawing in colours gives the same ids."""
    ids = read_label(shared / "data/caffe_fcn_demo/label.png", VOC)
    assert set(np.unique(ids)) <= {*range(21), 255}
    np.testing.assert_array_equal(
        read_label(shared / "data/caffe_fcn_demo/label.png", VOC, "color"), ids
    )
    assert set(np.unique(read_label(shared / "data/caffe_fcn_demo/output.png", VOC))) <= {
        *range(21)
    }
