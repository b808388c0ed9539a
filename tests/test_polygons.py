"""COCO's and LabelMe's files: every pixel as pycocotools and LabelMe draw it, or one line."""

from __future__ import annotations

import base64
import io
import json
import math

import numpy as np
import pytest
from dataset_trees import send_entries
from PIL import Image, ImageDraw

from fcn_jax.classes import ClassRow, ClassTable, load_class_table
from fcn_jax.cli import check
from fcn_jax.data import coco, labelme, open_source, polygons
from fcn_jax.data.layouts import UNCUT

pycocotools = pytest.importorskip("pycocotools.mask")


@pytest.fixture(autouse=True)
def _as_to_processes(monkeypatch):
    send_entries(monkeypatch)


def square(left, top, right, bottom):
    """The corners of a rectangle, as a polygon of COCO."""
    return [left, top, right, top, right, bottom, left, bottom]


class Coco:
    """A folder with one COCO file and the images of it, each of a (width, height)."""

    def __init__(self, root, file="annotations.json", place="images"):
        self.root, self.file, self.place = root, root / file, root / place
        self.categories = [{"id": 3, "name": "plate"}, {"id": 7, "name": "table"}]
        self.images, self.annotations = [], []

    def image(self, name="a.png", size=(20, 20), **fields):
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        fields = {"width": size[0], "height": size[1], **fields}
        fields = {key: value for key, value in fields.items() if value is not None}
        self.images.append({"id": len(self.images) + 1, "file_name": name, **fields})
        return self

    def add(self, segmentation, category=3, image=1, **fields):
        fields = {"id": 100 + len(self.annotations), "iscrowd": 0, **fields}
        of = {"image_id": image, "category_id": category, "segmentation": segmentation}
        self.annotations.append({**of, **fields})
        return self

    def write(self):
        content = {"images": self.images, "annotations": self.annotations}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({**content, "categories": self.categories}))
        return self

    def find(self, table=None):
        return coco.find(self.write().root, table)

    def label(self, size=(20, 20), table=None):
        """The label map of the first image; `size` is its (height, width)."""
        return drawn(self.find(table), size)[0]


def drawn(found, size):
    """The label map of the first image of what is found, and the notes."""
    assert not found.problems
    ((_, drawing),) = (pair for pairs in found.splits.values() for pair in pairs.values())
    label = found.classes.to_labels(drawing(size, found.told))
    return label, [*found.notes, *polygons.notes_of(found.told)]


def shape(points, label="plate", kind="polygon", **fields):
    return {"label": label, "points": points, "shape_type": kind, **fields}


def write_labelme(folder, shapes, name="a", size=(20, 20), image="a.png", **fields):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.0", "flags": {}, "shapes": shapes, "imagePath": image}
    content |= {"imageData": None, "imageWidth": size[0], "imageHeight": size[1]} | fields
    (folder / f"{name}.json").write_text(json.dumps(content))


def labelme_drawn(tmp_path, shapes, size=(20, 20), **fields):
    """The label map and the classes of one LabelMe file, and what is told."""
    write_labelme(tmp_path, shapes, size=size, **fields)
    Image.new("RGB", size).save(tmp_path / "a.png")
    found = labelme.find(tmp_path, None)
    return *drawn(found, size[::-1]), found.classes.names


# ======================================================================== COCO: pixels


def test_coco_draws_larger_objects_first(tmp_path):
    plate, table = square(6, 6, 14, 14), square(0, 0, 20, 20)
    found = Coco(tmp_path).image().add([plate], 3).add([table], 7).find()
    assert found.classes.names == ("background", "plate", "table")
    label, notes = drawn(found, (20, 20))
    assert np.bincount(label.ravel()).tolist() == [0, 64, 336]
    assert notes == []


def test_coco_run_lengths_go_down_the_columns(tmp_path):
    runs = {"size": [4, 3], "counts": [1, 2, 3, 4, 2]}
    label = Coco(tmp_path).image(size=(3, 4)).add(runs).label((4, 3))
    assert label.tolist() == [[0, 0, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 3], "counts": [1, 2, 3]}, "make 6 pixels, but its image has 12"),
        ({"size": [3, 4], "counts": [12]}, r"\[3, 4\], but its image has \[4, 3\]"),
        ({"size": [4, 3], "counts": [1, -2, 13]}, "make 12 pixels"),
        ({"size": [4, 3], "counts": [1.0, 11.0]}, "neither whole numbers nor"),
        ({"size": [4, 3], "counts": []}, "neither whole numbers nor"),
        ({"size": [4, 3], "counts": "é"}, "no compressed text"),
        ({"size": [4, 3], "counts": ""}, "no compressed text"),
        ({"size": [4, 3], "counts": "o" * 20 + "0"}, "more than 60 bits"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "its image has"),
        ([[1, 1, 2, 2, math.nan, 3]], "coordinate nan"),
        ([[1, 1, 2, 2, math.inf, 3]], "coordinate inf"),
        ([[1, 1, 2, 2, 1e30, 3]], r"coordinate 1e\+30"),
        ([[1, 1, 2, 2, 10**400, 3]], "no list of numbers"),
        ([[1, 1, 2, 2, "3", 3]], "no list of numbers"),
        ([[1, 1, 2, 2, 3]], "no pairs"),
        ([[1, 1], [5, 1], [5, 5]], "less than two"),
        ([1, 1, 2, 1, 2, 2], "no pairs"),
        ([[5, 5, 9, 5, 9, 9]], "outside of its picture of 3x4"),
        ([[0, 0, 3, 3] * 200], "longer than"),
        ("abc", "neither a list of polygons"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_coco_refuses_what_is_no_object(tmp_path, monkeypatch, segmentation, message):
    """Where pycocotools reads on, crashes, or takes all memory."""
    monkeypatch.setattr(polygons, "MAX_OUTLINE", 1000)
    found = Coco(tmp_path).image(size=(3, 4)).add(segmentation, id=77).find()
    with pytest.raises(ValueError, match=message) as caught:
        drawn(found, (4, 3))
    assert str(caught.value).startswith("annotations.json: annotation 77 of image a.png: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_coco_run_lengths_of_random_masks(tmp_path, compressed):
    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 1):  # long runs take several characters, differences are signed
        mask = rng.random((61, 83)) < share
        runs = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = runs["counts"].decode()
        if not compressed:
            columns = mask.T.ravel()
            ends = np.flatnonzero(np.diff(columns, prepend=False, append=~columns[-1:]))
            counts = np.diff(ends, prepend=0).tolist()
        one = Coco(tmp_path).image(size=(83, 61)).add({"size": [61, 83], "counts": counts})
        np.testing.assert_array_equal(one.label((61, 83)), mask)


def test_coco_polygons_are_those_of_pycocotools(tmp_path):
    """Random ones, partly outside, each in several parts; the smaller lies on top."""
    rng = np.random.default_rng(1)
    one, masks = Coco(tmp_path).image(size=(67, 41)), []
    for _ in range(8):
        corners = [rng.uniform(-15, 80, 2 * rng.integers(3, 9)).tolist() for _ in range(2)]
        masks.append(
            pycocotools.decode(pycocotools.merge(pycocotools.frPyObjects(corners, 41, 67)))
        )
        one.add(corners, 3 + 4 * (len(masks) % 2))
    expected = np.zeros((41, 67), int)
    for i in sorted(range(8), key=lambda i: -masks[i].sum(dtype=int)):
        expected[masks[i] == 1] = 1 + (i + 1) % 2
    assert len(np.unique(expected)) == 3
    label, notes = drawn(one.find(), (41, 67))
    np.testing.assert_array_equal(label, expected)
    assert any(note.startswith("reaches beyond its picture") for note in notes)


def test_coco_polygon_reaching_beyond_is_cut_and_told(tmp_path):
    label, notes = drawn(
        Coco(tmp_path).image(size=(10, 10)).add([square(5, 5, 25, 25)]).find(), (10, 10)
    )
    assert label.sum() == 25
    assert notes == [
        "reaches beyond its picture, where it is cut off: 1 (annotation 100 of annotations.json)"
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_coco_two_point_parts_are_told(tmp_path, order):
    parts = [[1, 1, 5, 1, 5, 5], [2, 3, 10, 10]][::order]
    label, (note,) = drawn(Coco(tmp_path).image().add(parts).find(), (20, 20))
    assert label.sum() == 6
    assert "only 2 points" in note
    assert "annotation 100" in note


def test_coco_object_without_a_pixel_is_told(tmp_path):
    one = Coco(tmp_path).image().add([[2, 3, 10, 10]]).add([[1, 1, 1.1, 1, 1.1, 1.1]])
    label, notes = drawn(one.find(), (20, 20))
    assert label.sum() == 0
    assert "covers no pixel: 2 (annotation 100 of annotations.json, annotation 101" in notes[1]


def test_coco_crowds_are_void_and_lie_by_size(tmp_path):
    mask = np.zeros((20, 20), np.uint8, order="F")
    mask[:10] = 1
    runs = pycocotools.encode(mask)
    crowd = {"size": [20, 20], "counts": runs["counts"].decode()}
    found = Coco(tmp_path).image().add(crowd, iscrowd=1).add([square(0, 0, 5, 5)], 7).find()
    label, _ = drawn(found, (20, 20))
    expected = np.where(mask, 255, 0)
    expected[:5, :5] = 2
    np.testing.assert_array_equal(label, expected)
    assert "crowds are void" in found.layout


# ======================================================================== COCO: which picture


@pytest.mark.parametrize("stated", [(60, 40), (40, 60), (None, None), (120, 80)])
def test_coco_polygons_are_of_the_upright_image(tmp_path, stated):
    """A JPEG of 60x40 that is shown as 40x60, with a red band on top."""
    upright = np.zeros((60, 40, 3), np.uint8)
    upright[:10] = (255, 0, 0)
    one = Coco(tmp_path).image("a.jpg", (60, 40), width=stated[0], height=stated[1])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(one.place / "a.jpg", exif=exif, quality=95)
    scale = 2 if stated == (120, 80) else 1
    label, notes = drawn(one.add([square(0, 0, 40 * scale, 10 * scale)]).find(), (60, 40))
    np.testing.assert_array_equal(label, upright[..., 0] == 255)
    assert any("EXIF" in note for note in notes) == (stated in [(60, 40), (120, 80)])

    if stated == (60, 40):  # certainly drawn on the picture as it is stored
        one.add([square(0, 0, 60, 10)])
        with pytest.raises(ValueError, match=r"101 .* leaves the upright picture of 40x60"):
            drawn(one.find(), (60, 40))


def test_coco_image_at_another_size_is_told(tmp_path):
    one = Coco(tmp_path).image(size=(200, 150), width=400, height=300)
    label, notes = drawn(one.add([square(0, 0, 400, 150)]).find(), (150, 200))
    assert label[:75].all()
    assert label.sum() == 15000
    assert notes == [
        "drawn on a picture of another size, and scaled to that of the image: "
        "1 (a.png in annotations.json)"
    ]


def test_coco_run_lengths_at_another_size(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (15, 20), np.uint8)
    large = np.asfortranarray(mask.repeat(2, 0).repeat(2, 1))
    runs = {"size": [30, 40], "counts": pycocotools.encode(large)["counts"].decode()}
    one = Coco(tmp_path).image(size=(20, 15), width=40, height=30).add(runs)
    np.testing.assert_array_equal(one.label((15, 20)), mask)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ((400, 200), "a picture of 400x200, but its image has 200x150"),
        ((150, 200), "a picture of 150x200, but its image has 200x150"),  # no EXIF orientation
        ((10**9, 75 * 10**7), "is not in 1"),
        ((0, 0), "is not in 1"),
        ((math.nan, 150), "no number of pixels"),
        (("200", "150"), "no number of pixels"),
        ((200, None), "no number of pixels"),
    ],
)
def test_coco_stated_sizes_that_do_not_fit(tmp_path, stated, message):
    one = Coco(tmp_path).image(size=(200, 150), width=stated[0], height=stated[1])
    with pytest.raises(ValueError, match=f"annotations.json: image a.png: .*{message}"):
        one.add([square(0, 0, 4, 4)]).label((150, 200))


# ======================================================================== COCO: files and classes


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (
            [("annotations/instances_train2017.json", "train2017"),
             ("annotations/instances_val2017.json", "val2017")],
            {"train": ["a", "b"], "val": ["a", "b"]},
        ),
        (
            [("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid"),
             ("test/_annotations.coco.json", "test")],
            {"train": ["a", "b"], "val": ["a", "b"], "test": ["a", "b"]},
        ),
        ([("annotations.json", "images")], {UNCUT: ["a", "b"]}),
        ([("annotations/instances_default.json", "images")], {UNCUT: ["a", "b"]}),
    ],
)  # fmt: skip
def test_coco_layouts(tmp_path, files, splits):
    for file, place in files:
        Coco(tmp_path, file, place).image("a.jpg").image("b.jpg").add([square(0, 0, 4, 4)]).write()
    found = coco.find(tmp_path, None)
    assert not found.problems
    assert {split: [*ids] for split, ids in found.splits.items()} == splits
    places = [tmp_path / place for _, place in files]
    assert {path.parent for ids in found.splits.values() for path, _ in ids.values()} == {*places}


@pytest.mark.parametrize(
    "name",
    ["sub/a.png", "sub\\a.png", "images/sub/a.png", "C:\\me\\sub\\a.png", "/home/me/sub/a.png",
     "../elsewhere/sub/a.png", "./sub/a.png"],
)  # fmt: skip
def test_coco_file_names_of_any_system(tmp_path, name):
    one = Coco(tmp_path).image("sub/a.png").image("other/a.png", (7, 7)).add([square(0, 0, 4, 4)])
    one.images[0]["file_name"] = name
    pairs = one.find().splits[UNCUT]
    assert sorted(path for path, _ in pairs.values()) == [
        tmp_path / "images/other/a.png",
        tmp_path / "images/sub/a.png",
    ]
    assert [*pairs] == ["sub_a", "other_a"]


def problems(found):
    return [text for text, _ in found.problems]


def test_coco_images_that_are_not_there_or_not_listed(tmp_path):
    one = Coco(tmp_path).image("a.png").image("b.png").image("c.png").add([square(0, 0, 4, 4)])
    (one.place / "b.png").rename(one.place / "d.png")
    found = one.find()
    assert problems(found) == ["images that are not there: 1 (b.png)"]
    assert found.notes == ["images that no file lists, left out: 1 (images/d.png)"]
    assert found.told == [("images without an annotation, which are background", "c.png")]


def test_coco_never_takes_an_image_of_another_split_or_folder(tmp_path):
    for name in ("train2017/a.png", "other/b.png", "more/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    one = Coco(tmp_path, "annotations/instances_val2017.json", "val2017").image("c.png")
    one.images += [{"id": i, "file_name": name} for i, name in ((8, "a.png"), (9, "b.png"))]
    one.images += [{"id": 10, "file_name": "gone/c.png"}]
    assert problems(one.find()) == [
        "images that are not there: 2 (a.png, gone/c.png)",
        "images that fit several files: 1 (b.png)",
    ]


def test_coco_entries_that_make_no_sense(tmp_path):
    one = Coco(tmp_path).image("a.png").image("b.png")
    one.images += [{"id": 1, "file_name": "b.png"}, {"id": 5, "file_name": "a.png"}, {"id": 6}, 7]
    part = [square(0, 0, 4, 4)]
    one.add(part, image=99).add(part, image=None).add(part, image=[1]).add(part, 5)
    one.add([]).add(None).add(part, iscrowd=3)
    one.annotations.append("x")
    assert problems(one.find()) == [
        "ids of two images: 1 (1)",
        "images without an id or a file_name: 2 (number 4, number 5)",
        "annotations of images that are not listed: 4 (100, 101, 102, ...)",
        "annotations of categories that are not listed: 1 (103)",
        "annotations without a segmentation (a box does not tell pixels): 2 (104, 105)",
        "annotations whose iscrowd is neither 0 nor 1: 1 (106)",
        "images listed before: 1 (a.png)",
    ]


@pytest.mark.parametrize(
    ("categories", "classes", "label"),
    [
        ([(1, "person"), (90, "toothbrush")], ("background", "person", "toothbrush"), 2),
        ([(90, "toothbrush"), (1, "person")], ("background", "person", "toothbrush"), 1),
        ([(1, "person"), (5, "_background_")], ("background", "person"), 0),
        ([(1, "person"), (0, "Background")], ("background", "person"), 0),
        ([(1, "person"), (5, "__ignore__")], ("background", "person"), 255),
        ([(0, "all"), (2, "man", "all"), (1, "car", "all")], ("background", "car", "man"), 1),
        ([(0, "car"), (2, "car", "car")], ("background", "car"), 1),
        ([(1, "person", "person")], ("background", "person"), 1),
    ],
)
def test_coco_categories_in_order_of_their_ids(tmp_path, categories, classes, label):
    """A group of others, without annotations, as Roboflow writes, is no class."""
    one = Coco(tmp_path).image()
    names = ("id", "name", "supercategory")
    one.categories = [dict(zip(names, row, strict=False)) for row in categories]
    found = one.add([square(0, 0, 4, 4)], categories[-1][0]).find()
    assert found.classes.names == classes
    assert drawn(found, (20, 20))[0][0, 0] == label


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories have the id 1"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "or the name 'a'"),
        ([{"id": 1}], "no name"),
        ([{"id": "1", "name": "a"}], "no id that is a number"),
        ([7], "the category 7"),
        ([{"id": 1, "name": "a\nb"}], "control characters"),
        ([{"id": i, "name": f"c{i}"} for i in range(255)], "needs 1 to 255 classes"),
    ],
)
def test_coco_categories_that_are_refused(tmp_path, categories, message):
    one = Coco(tmp_path).image()
    one.categories = categories
    with pytest.raises(ValueError, match=message) as caught:
        one.find()
    assert str(tmp_path) in str(caught.value)


def test_coco_files_may_number_the_same_classes_differently(tmp_path):
    train = Coco(tmp_path, "train.json", "train").image().add([square(0, 0, 4, 4)], 3).write()
    train = train.categories
    val = Coco(tmp_path, "val.json", "val").image().add([square(0, 0, 4, 4)], 3)
    val.categories = [{"id": 7, "name": "plate"}, {"id": 3, "name": "table"}]
    found = val.find()
    assert found.classes.names == ("background", "plate", "table")
    of = {split: next(iter(ids.values()))[1] for split, ids in found.splits.items()}
    assert [found.classes.to_labels(of[s]((20, 20), []))[0, 0] for s in ("train", "val")] == [1, 2]


def test_coco_class_file_names_and_orders(tmp_path):
    (tmp_path / "classes.txt").write_text("table\nplate")
    one = Coco(tmp_path).image().add([square(0, 0, 4, 4)], 3)
    found = one.find(load_class_table(tmp_path / "classes.txt"))
    assert found.classes.names == ("background", "table", "plate")
    assert drawn(found, (20, 20))[0].sum() == 2 * 16
    (tmp_path / "classes.txt").write_text("nothing\ntable")
    found = one.find(load_class_table(tmp_path / "classes.txt"))
    assert problems(found) == ["annotations of 'plate', which the class file lacks: 1 (100)"]
    background = ClassTable(
        (ClassRow("plate", (1, 2, 3)), ClassRow("_background_", (0, 0, 0), True))
    )
    label, _ = drawn(one.find(background), (20, 20))
    assert label[0, 0] == 0
    assert label[10, 10] == 255  # the class file says that background does not count


def test_coco_files_beside_others(tmp_path):
    """Where there are instances, they are meant; other JSON is not COCO's."""
    Coco(tmp_path, "annotations/instances_train.json", "train").image().write()
    Coco(tmp_path, "annotations/person_keypoints_train.json", "train").write()
    (tmp_path / "meta.json").write_text('{"images": 1, "annotations": [')  # of no interest
    found = coco.find(tmp_path, None)
    assert found.files == [tmp_path / "annotations/instances_train.json"]
    assert found.notes[0] == (
        "files that are not read: 2 (annotations/person_keypoints_train.json, meta.json)"
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"shapes": []}', '{"images":[],"annotations":{}}']
)
def test_coco_is_not_seen_elsewhere(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert coco.find(tmp_path, None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "annotations": [' + "[" * 100_000, "nested too deeply"),
        ('{"images": [], "annotations": [', "cannot be read as JSON"),
        (b'{"images": [], "annotations": "\xff"}', "cannot be read as JSON"),
        ('{"images": [], "annotations": [' + "9" * 5000 + "]}", "cannot be read as JSON"),
        ('{"images":[],"categories":[],"annotations":[{"segments_info":[]}]}', "panoptic"),
    ],
)  # fmt: skip
def test_coco_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        coco.find(tmp_path, None)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 300


def test_coco_asks_for_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(ValueError, match=r"pip install 'fcn-jax\[coco\]'"):
        Coco(tmp_path).image().find()


# ======================================================================== LabelMe: pixels


def shape_to_mask(size, points, kind):
    """The pixels of a shape, drawn alone as LabelMe's function of this name does."""
    mask = Image.new("L", size[::-1])
    draw = ImageDraw.Draw(mask)
    xy = [tuple(point) for point in points]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = xy
        corners = ((min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1)))
        draw.rectangle(corners, outline=1, fill=1)
    else:
        draw.polygon(xy=xy, outline=1, fill=1)
    return np.array(mask, bool)


def test_labelme_later_shapes_lie_on_top(tmp_path):
    plate, table = [[6, 6], [14, 6], [14, 14], [6, 14]], [[0, 0], [19, 0], [19, 19], [0, 19]]
    label, notes, names = labelme_drawn(tmp_path, [shape(plate), shape(table, "table")])
    assert names == ("background", "plate", "table")
    assert np.bincount(label.ravel()).tolist() == [0, 0, 400]
    assert notes == ["hidden by objects on top of it: 1 (a.json shapes[0] 'plate')"]
    label, notes, _ = labelme_drawn(tmp_path, [shape(table, "table"), shape(plate)])
    assert notes == []
    assert (label == 1).sum() == shape_to_mask((20, 20), plate, "polygon").sum()


def test_labelme_shapes_are_those_of_labelme(tmp_path):
    rng = np.random.default_rng(0)
    shapes, expected = [], np.zeros((41, 67), int)
    for i in range(24):
        kind = ("polygon", "rectangle", "oriented_rectangle")[i % 3]
        count = {"rectangle": 2, "oriented_rectangle": 4}.get(kind, rng.integers(3, 9))
        points = (rng.uniform(-2, 30, (count, 2)) + rng.uniform(0, 20, 2)).tolist()
        shapes.append(shape(points, f"c{i:02}", kind))
        expected[shape_to_mask((41, 67), points, kind)] = i + 1
    label, _, names = labelme_drawn(tmp_path, shapes, (67, 41))
    assert names == ("background", *(f"c{i:02}" for i in range(24)))
    np.testing.assert_array_equal(label, expected)
    assert len(np.unique(label)) > 12


@pytest.mark.parametrize("center", [(20, 20), (1.5, 37.25)])
def test_labelme_rectangle_and_circle(tmp_path, center):
    shapes = [shape([center, [center[0] + 5, center[1]]], "disc", "circle")]
    shapes += [shape([[13, 9], [7, 3]], "box", "rectangle")]
    label, notes, _ = labelme_drawn(tmp_path, shapes, (40, 40))
    y, x = np.mgrid[:40, :40]
    expected = np.where(np.hypot(x - center[0], y - center[1]) <= 5, 2, 0)
    expected[3:10, 7:14] = 1
    np.testing.assert_array_equal(label, expected)
    assert len(notes) == (center != (20, 20))
    if center == (20, 20):
        assert (label == 2).sum() == 81


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("scale", [1, 2])
def test_labelme_masks(tmp_path, scale):
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    large = mask.repeat(scale, 0).repeat(scale, 1)
    points = [[scale * 4, scale * 5], [scale * 13 - 1, scale * 12 - 1]]
    shapes = [shape(points, "stain", "mask", mask=png(large))]
    label, _, _ = labelme_drawn(
        tmp_path, shapes, (30, 20), imageWidth=30 * scale, imageHeight=20 * scale
    )
    expected = np.zeros((20, 30), int)
    expected[5:12, 4:13] = mask
    np.testing.assert_array_equal(label, expected)


def test_labelme_special_labels(tmp_path):
    """A hole is a shape of background; `__ignore__` does not count."""
    outer = [[0, 0], [19, 0], [19, 19], [0, 19]]
    shapes = [shape(outer), shape([[4, 4], [7, 7]], "__ignore__", "rectangle")]
    shapes += [shape([[10, 10], [14, 14]], "_background_", "rectangle")]
    label, _, names = labelme_drawn(tmp_path, shapes)
    expected = np.ones((20, 20), int)
    expected[4:8, 4:8], expected[10:15, 10:15] = 255, 0
    assert names == ("background", "plate")
    np.testing.assert_array_equal(label, expected)


def test_labelme_what_covers_nothing_is_told(tmp_path):
    shapes = [shape([[3, 3]], "seed", "point"), shape([[3, 3], [9, 9]], "edge", "line")]
    shapes += [shape([[3, 3], [9, 9], [9, 3]], "path", "linestrip"), shape([[3, 3], [9, 9]])]
    shapes += [shape([[1, 1], [2, 2]], "stain", "mask", mask=png(np.zeros((2, 2), np.uint8)))]
    label, notes, names = labelme_drawn(tmp_path, shapes)
    assert label.sum() == 0
    assert names == ("background", "plate", "stain")
    assert notes == [
        "a point covers no pixels and is not drawn: 1 (a.json shapes[0] 'seed')",
        "a line covers no pixels and is not drawn: 1 (a.json shapes[1] 'edge')",
        "a linestrip covers no pixels and is not drawn: 1 (a.json shapes[2] 'path')",
        "a polygon of fewer than 3 points covers no pixel: 1 (a.json shapes[3] 'plate')",
        "covers no pixel: 1 (a.json shapes[4] 'stain')",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape([[1, 1], [2, 2], [3, math.nan]]), "coordinate nan"),
        (shape([[1, 1], [2, 2], [3, 1e400]]), "coordinate inf"),
        (shape([[1, 1], [2, 2], [3, 1e9]]), r"coordinate 1e\+09"),
        (shape([[1, 1], [2, 2], [3, "3"]]), "no list of numbers"),
        (shape([[1, 1], [2, 2], [3]]), "no list of numbers"),
        (shape(None), "no list of numbers"),
        (shape([[30, 30], [40, 30], [40, 40]]), "outside of its picture of 20x20"),
        (shape([[1, 1]], kind="circle"), "a circle has 2 points, but this one 1"),
        (shape([[1, 1]] * 3, kind="rectangle"), "a rectangle has 2 points, but this one 3"),
        (shape([[1, 1], [3, 3]], kind="mask", mask="?"), "no PNG file"),
        (shape([[1, 1], [3, 3]], kind="mask"), "no PNG file"),
        (shape([[1, 1], [3, 3]], kind="mask", mask="AAAA"), "its mask: not an image"),
        (
            shape([[1, 1], [3, 3]], kind="mask", mask=png(np.ones((2, 3), np.uint8))),
            "its mask has 3x2 pixels, but its points span 3x3",
        ),
        (shape([[1, 1]] * 2000), "takes too long"),
        (shape([[1, 1], [19, 19]] * 60), "outline of 2160 pixels is longer than 1000"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_labelme_refuses_what_is_no_shape(tmp_path, monkeypatch, wrong, message):
    monkeypatch.setattr(labelme, "MAX_WORK", 20000)
    monkeypatch.setattr(polygons, "MAX_OUTLINE", 1000)
    with pytest.raises(ValueError, match=message) as caught:
        labelme_drawn(tmp_path, [shape([[1, 1], [5, 5], [5, 1]]), wrong])
    assert str(caught.value).startswith("a.json shapes[1] 'plate': ")
    assert len(str(caught.value)) < 300


# ======================================================================== LabelMe: files


@pytest.mark.parametrize(
    ("place", "image"),
    [
        ("labels", "..\\images\\a.jpg"),
        ("labels", "../images/a.jpg"),
        ("labels", "a.jpg"),
        ("labels", "C:\\Users\\me\\images\\a.jpg"),
        ("labels", "/home/me/photos/a.jpg"),
        ("images", "a.jpg"),
        ("images", "before_it_was_renamed.jpg"),
    ],
)
@pytest.mark.parametrize("stated", [(20, 20), (None, None)])
def test_labelme_images_are_found(tmp_path, place, image, stated):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "images/a.jpg")
    write_labelme(tmp_path / place, [shape([[1, 1], [3, 3]], kind="rectangle")], "a", stated, image)
    found = labelme.find(tmp_path, None)
    assert [path for path, _ in found.splits[UNCUT].values()] == [tmp_path / "images/a.jpg"]
    assert [*found.splits[UNCUT]] == ["a"]
    assert drawn(found, (20, 20))[0].sum() == 9
    assert found.unlabeled == []
    assert len(found.told) == (image == "before_it_was_renamed.jpg")


def test_labelme_image_in_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    one = [shape([[1, 1], [3, 3]], kind="rectangle")]
    write_labelme(tmp_path, one, imageData=png(pixels))
    found = labelme.find(tmp_path, None)
    assert [path for path, _ in found.splits[UNCUT].values()] == [tmp_path / "a.json"]
    with Image.open(io.BytesIO(labelme.image_source(tmp_path / "a.json"))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_labelme_files_by_folders_and_problems(tmp_path):
    one = [shape([[1, 1], [3, 3]], kind="rectangle")]
    for split, name in (("train", "a"), ("train", "test"), ("val", "a"), ("train", "alone")):
        (tmp_path / split).mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / split / f"{name}.png")
        if name != "alone":
            write_labelme(tmp_path / split, one, name, image=f"{name}.png")
    write_labelme(tmp_path / "train", one, "gone", image="gone.png")
    write_labelme(tmp_path / "train", one, "copy", image="a.png")
    (tmp_path / "train/cut.json").write_text('{"shapes": [')
    (tmp_path / "train/none.json").write_text('{"shapes": [{}], "imagePath": ""}')
    (tmp_path / "meta.json").write_text('{"shapes": 1}')
    found = labelme.find(tmp_path, None)
    assert {split: [*ids] for split, ids in found.splits.items()} == {
        "train": ["a", "test"],
        "val": ["a"],
    }
    assert [(text[:22], path.name) for text, path in found.problems] == [
        ("cannot be read as JSON", "cut.json"),
        ("shapes[0] has no label", "none.json"),
        ("its image 'a.png' is t", "copy.json"),
        ("its image 'gone.png' i", "gone.json"),
    ]
    assert found.unlabeled == [tmp_path / "train/alone.png"]
    assert found.notes == ["JSON files that are not LabelMe's, not read: 1 (meta.json)"]


def test_labelme_class_file(tmp_path):
    """LabelMe's own labels.txt names and orders the classes."""
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nplate\ncup")
    box = [[1, 1], [3, 3]]
    shapes = [shape(box, "plate", "rectangle"), shape([[9, 9], [9, 9]], "cup", "rectangle")]
    label, _, names = labelme_drawn(tmp_path, shapes)
    assert names == ("_background_", "plate", "cup")
    assert np.bincount(label.ravel()).tolist() == [390, 9, 1]
    write_labelme(tmp_path, [*shapes, shape(box, "cpu", "rectangle")])
    assert problems(labelme.find(tmp_path, None)) == [
        "the class file lacks the label 'cpu' of 1 (a.json shapes[2] 'cpu')"
    ]


# ======================================================================== as data sets


def test_coco_is_checked_and_prepared(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        one = Coco(tmp_path / "d", f"{split}/_annotations.coco.json", split)
        for i in (1, 2):
            one.image(f"{i}.png")
            one.add([square(0, 0, 4 * i, 5)], 3, i).add([square(9, 9, 12, 12)], 7, i)
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(one.place / f"{i}.png")
        one.write()
    assert check.main([str(tmp_path / "d")]) == 0
    out = capsys.readouterr().out
    assert "layout: COCO annotations of train/_annotations.coco.json, valid/_annotations" in out
    assert "table" in out
    source = open_source("folder", "val", data_dir=tmp_path, manual_dir=tmp_path / "d")
    assert source.ids == ("1", "2")
    assert source.classes.names == ("background", "plate", "table")
    for i, example in enumerate(source, start=1):
        expected = np.zeros((20, 20), int)
        expected[:5, : 4 * i], expected[9:12, 9:12] = 1, 2
        np.testing.assert_array_equal(example["label"], expected)


def test_labelme_is_checked_and_prepared(tmp_path, capsys):
    """Images beside the files, and one in its file; the same wrong shape in two is one line."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 20, 20, 3), np.uint8)
    (tmp_path / "d").mkdir()
    for i in range(4):
        shapes = [shape([[i, 2], [i + 3, 4]], "plate", "rectangle")]
        fields = {"imageData": png(pixels[i])} if i == 3 else {}
        if i < 3:
            Image.fromarray(pixels[i]).save(tmp_path / f"d/{i}.png")
        write_labelme(tmp_path / "d", shapes, str(i), image=f"{i}.png", **fields)
    assert check.main([str(tmp_path / "d")]) == 0
    capsys.readouterr()
    options = {"val_fraction": 0, "test_fraction": 0}
    source = open_source("folder", "train", data_dir=tmp_path, manual_dir=tmp_path / "d", **options)
    assert source.ids == ("0", "1", "2", "3")
    for i, example in enumerate(source):
        np.testing.assert_array_equal(example["image"], pixels[i])
        expected = np.zeros((20, 20), int)
        expected[2:5, i : i + 4] = 1
        np.testing.assert_array_equal(example["label"], expected)

    for i in range(2):
        wrong = [shape([[1, 1], [2, 2], [3, math.nan]])]
        write_labelme(tmp_path / "d", wrong, str(i), image=f"{i}.png")
    assert check.main([str(tmp_path / "d")]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "coordinate nan" in line]
    assert len(lines) == 1
    assert all(f"{i}.json shapes[0] 'plate'" in lines[0] for i in range(2))


def test_messages_are_one_line_whatever_a_file_holds(tmp_path):
    one = Coco(tmp_path / "c").image("a.png", width="\n" * 999)
    one.images += [{"id": 7, "file_name": "b\n\u202e" * 999}]
    found = one.add([square(0, 0, 4, 4)]).add([], id="\n" * 999).find()
    ((_, drawing),) = found.splits[UNCUT].values()
    with pytest.raises(ValueError, match="no number of pixels") as caught:
        drawing((20, 20), [])
    write_labelme(tmp_path / "l", [shape([[1]], "x\ud800")], image="b\n" * 999)
    with pytest.raises(ValueError, match="control characters") as refused:
        labelme.find(tmp_path / "l", None)
    write_labelme(tmp_path / "l", [shape([[1]], "x", "\n" * 999)], image="b\n" * 999)
    texts = [*problems(found), *problems(labelme.find(tmp_path / "l", None)), *found.notes]
    for text in (*texts, str(caught.value), str(refused.value)):
        assert len(text.splitlines()) == 1
        assert len(text) < 500


def test_notes_count_objects_once_in_any_order():
    numbers = (np.random.default_rng(0).permutation(1000) % 500).tolist()
    told = [pair for i in numbers for pair in (("hidden", f"a{i:03}"), ("outside", "b"))]
    notes = polygons.notes_of(told)
    assert notes == ["hidden: 500 (a000, a001, a002, ...)", "outside: 1 (b)"]
