"""Layouts of a person's folder, those of other tools too: which image has which mask."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.cli import check
from fcn_jax.data import Source, exports, folder, layouts, prepare
from fcn_jax.data.source import split_sizes

NAMES = ("ground", "cat", "dog")
COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 200, 100)], np.uint8)


class Files:
    """Writes random images and masks of ids 0..2; keeps what each image's label must be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)
        self.labels: dict[bytes, np.ndarray] = {}  # by the image's pixels

    def add(self, image: str, mask: str = "", *, kind: str = "ids", shift: int = 0) -> None:
        size = tuple(self.rng.integers(3, 9, 2))
        ids = self.rng.integers(0, 3, size, np.uint8)
        ids.flat[:3] = 0, 1, 2
        self._save(image, self.rng.integers(0, 256, (*size, 3), np.uint8))
        if not mask:
            return
        if mask.endswith(".npy"):
            (self.root / mask).parent.mkdir(parents=True, exist_ok=True)
            np.save(self.root / mask, ids)
        else:
            stored = ids + np.uint8(shift)
            self._save(
                mask, {"ids": stored, "grey": stored[..., None].repeat(3, 2)}.get(kind, COLORS[ids])
            )
        with Image.open(self.root / image) as file:
            self.labels[np.array(file.convert("RGB")).tobytes()] = ids

    def _save(self, name: str, pixels: np.ndarray) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def check(self, data_dir: Path, **options) -> dict[str, tuple[str, ...]]:
        """Prepares the folder, compares every label, and returns the ids of every split."""
        path = prepare("folder", data_dir=data_dir, manual_dir=self.root, **options)
        sources = {split: Source(path, split) for split in split_sizes(path)}
        examples = [example for source in sources.values() for example in source]
        for example in examples:
            expected = self.labels[example["image"].tobytes()]
            np.testing.assert_array_equal(example["label"], expected)
        assert len(examples) == len(self.labels)
        assert next(iter(sources.values())).classes.names == NAMES
        return {split: source.ids for split, source in sources.items()}


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "mine")


@pytest.fixture
def classes(files):
    files.write("classes.txt", "\n".join(NAMES))


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{s}/x{i}.jpg", "{s}/x{i}.png"),
        ("{s}/x{i}.JPG", "{s}/x{i}_mask.PNG"),
        ("{s}/images/x{i}.jpg", "{s}/masks/x{i}_mask.png"),
        ("{s}/images/x{i}_rgb.png", "{s}/labels/x{i}_gt.png"),
        ("Images/{s}/x{i}.png", "Masks/{s}/x{i}.npy"),
        ("images/{s}/a b/x{i}.png", "SegmentationClass/{s}/a b/x{i}.png"),
        ("{s}/x{i}.png", "{s}annot/x{i}.png"),
        ("{s}_images/x{i}.png", "{s}_masks/x{i}.tif"),
        ("images/{s}/x{i}.png", "images/{s}/x{i}-label.png"),
    ],
)
def test_images_and_masks_of_usual_places(files, tmp_path, capsys, image, mask):
    for split in ("train", "valid"):
        for i in range(3):
            files.add(image.format(s=split, i=i), mask.format(s=split, i=i))
    ids = files.check(tmp_path / "d")
    assert {split: len(names) for split, names in ids.items()} == {"train": 3, "val": 3}
    assert check.main([str(files.root)]) == 0
    assert "layout: images in " in capsys.readouterr().out


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("mask_end", layouts.MASK_ENDS[1:])
@pytest.mark.parametrize("image_end", layouts.IMAGE_ENDS)
def test_usual_ends_of_names(files, image_end, mask_end):
    for i in range(3):
        files.add(f"a/x{i}{image_end}.png", f"a/x{i}{mask_end}.png")
    found = folder.plan(files.root).found
    assert found.splits == {
        "": {
            f"a_x{i}": tuple(files.root / f"a/x{i}{end}.png" for end in (image_end, mask_end))
            for i in range(3)
        }
    }
    assert not found.unlabeled + found.leftover + found.notes + found.problems


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("name", ["valid", "validation", "val"])
@pytest.mark.parametrize("globs", [False, True])
def test_names_of_val(files, tmp_path, name, globs):
    files.add("train/images/a.png", "train/masks/a.png")
    files.add(f"{name}/images/b.png", f"{name}/masks/b.png")
    options = {"images": "{split}/images/*", "masks": "{split}/masks/*"} if globs else {}
    assert files.check(tmp_path / "d", **options) == {"train": ("a",), "val": ("b",)}


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("globs", [False, True])
def test_composed_and_decomposed_names_belong_together(files, tmp_path, turned, globs):
    image, mask = (unicodedata.normalize(form, "Äpfel/é1.png") for form in ("NFC", "NFD"))
    image, mask = (mask, image) if turned else (image, mask)
    assert image != mask
    files.add(f"images/{image}", f"masks/{mask}")
    options = {"images": "images/**/é*.png", "masks": "masks/**/é*.PNG"} if globs else {}
    ((name,),) = files.check(tmp_path / "d", **options).values()
    assert name == unicodedata.normalize("NFC", name)


@pytest.mark.usefixtures("classes")
def test_globs_stay_in_the_folder(files, tmp_path, monkeypatch):
    files.add("a/x.png", "b/x.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.check(tmp_path / "d", images="~/mine/a/[w-y].png", masks="a/../b/?.png")
    for glob in ("../other/*.png", "/etc/*", "~/other/*", "a/../../mine2/*"):
        with pytest.raises(ValueError, match=r"must be relative to .*mine, and lie in it"):
            folder.plan(files.root, images=glob, masks="b/*.png")


@pytest.mark.usefixtures("classes")
def test_unlabeled_images_and_masks_left_over(files, tmp_path, capsys):
    for i in range(12):
        files.add(f"images/x{i}.png", f"masks/x{i}.png")
    for i in range(5):
        files.add(f"images/unlabeled{i}.png")
    for i in range(2):
        (files.root / f"images/x{i}.png").rename(files.root / f"images/renamed{i}.png")
    with pytest.raises(
        ValueError, match=r"\n  7 files: no mask.*: images/renamed0\.png, .* 4 more"
    ):
        prepare("folder", data_dir=tmp_path / "d", manual_dir=files.root)
    assert check.main([str(files.root), "--skip_unlabeled"]) == 0
    told = capsys.readouterr()
    assert "7 images without a mask are left out" in told.out
    assert "2 masks without an image: masks/x0.png, masks/x1.png" in told.err
    assert "--config.dataset_options.skip_unlabeled=True" in told.out
    path = prepare("folder", data_dir=tmp_path / "d", manual_dir=files.root, skip_unlabeled=True)
    assert sum(split_sizes(path).values()) == 10


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize(
    ("image", "mask"), [("x{}.jpg", "mask_x{}_final.png"), ("cam_x{}.jpg", "x{}.png")]
)
def test_other_names_are_proposed_as_globs(files, tmp_path, capsys, image, mask):
    for i in range(12):
        files.add(f"images/{image.format(i)}", f"masks/{mask.format(i)}")
    assert check.main([str(files.root)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "fcn-jax check" in line]
    words = dict(word.strip("'").split("=") for word in line.split() if "=" in word)
    options = {"images": words["--images"], "masks": words["--masks"]}
    assert len(files.check(tmp_path / "d", **options)) == 3


def test_roboflow(files, tmp_path, capsys):
    for split, many in (("train", 3), ("valid", 2), ("test", 1)):
        files.write(f"{split}/_classes.csv", "Pixel Value, Class\n0, ground\n1, cat\n2, dog\n")
        for i in range(many):
            name = f"{split}/a-{i}_jpg.rf.0{i}{split}"
            files.add(f"{name}.jpg", f"{name}_mask.png")
    ids = files.check(tmp_path / "d")
    assert {split: len(names) for split, names in ids.items()} == {"train": 3, "val": 2, "test": 1}
    assert check.main([str(files.root)]) == 0
    assert "layout: Roboflow's masks; " in capsys.readouterr().out
    files.write("valid/_classes.csv", "Pixel Value, Class\n0, ground\n1, dog\n2, cat\n")
    with pytest.raises(
        ValueError, match=r"valid/_classes\.csv: other classes than in test/_classe"
    ):
        prepare("folder", data_dir=tmp_path / "d", manual_dir=files.root)


@pytest.mark.parametrize("lists", ["train and val", "default"])
def test_cvat(files, tmp_path, capsys, lists):
    lines = [f"{n}:{r},{g},{b}::" for n, (r, g, b) in zip(NAMES, COLORS.tolist(), strict=True)]
    files.write("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
    for i in range(5):
        files.add(f"JPEGImages/sub/x{i}.jpg", f"SegmentationClass/sub/x{i}.png", kind="colors")
    listed = {"default": range(5)} if lists == "default" else {"Train": range(3), "val": [3, 4]}
    for name, numbers in listed.items():
        text = "".join(f"sub/x{i}\n" for i in numbers)
        files.write(f"ImageSets/Segmentation/{name}.txt", text)
    ids = files.check(tmp_path / "d")
    if lists == "default":
        assert set(ids) == {"train", "val", "test"}
    else:
        assert ids == {"train": ("sub_x0", "sub_x1", "sub_x2"), "val": ("sub_x3", "sub_x4")}
    assert check.main([str(files.root)]) == 0
    assert "layout: CVAT's masks, " in capsys.readouterr().out


def test_cvat_without_images(files):
    files.add("elsewhere/a.jpg", "SegmentationClass/a.png")
    files.write("ImageSets/Segmentation/default.txt", "a")
    files.write("labelmap.txt", "ground:0,0,0::")
    with pytest.raises(FileNotFoundError, match="no images in JPEGImages; export once more with"):
        folder.plan(files.root)


@pytest.mark.parametrize(
    ("color", "number", "message"),
    [
        ("1e400", "1", "colour inf is not text"),
        ("804000", "1", "colour 804000 is not text"),
        ('"#ff80"', "1", "meta.json: not Supervisely's classes"),
        ('"#ff8000"', "1e400", "obj_class_to_machine_color.json gives cat the number inf"),
        ('"#ff8000"', "1.5", "gives cat the number 1.5"),
    ],
)
def test_classes_of_supervisely_that_are_none(tmp_path, color, number, message):
    for place in ("ds/img", "ds/masks_machine"):
        (tmp_path / place).mkdir(parents=True)
    meta = f'{{"classes": [{{"title": "cat", "color": {color}}}]}}'
    (tmp_path / "meta.json").write_text(meta)
    (tmp_path / "obj_class_to_machine_color.json").write_text(f'{{"cat": [{number}, 1, 1]}}')
    with pytest.raises(ValueError, match=re.escape(message)):
        exports.find_supervisely(tmp_path, None)


@pytest.mark.parametrize("kind", ["masks_machine", "with numbers", "masks_human"])
def test_supervisely(files, tmp_path, capsys, kind):
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in COLORS.tolist()]
    classes = [
        {"title": n, "shape": "bitmap", "color": c} for n, c in zip(NAMES, colors, strict=True)
    ]
    if kind != "with numbers":  # else the three classes have the numbers 0, 1, 2
        classes = classes[1:]
    files.write("meta.json", json.dumps({"classes": classes, "tags": []}))
    if kind == "with numbers":
        numbers = {name: [i, i, i] for i, name in enumerate(NAMES)}
        files.write("obj_class_to_machine_color.json", json.dumps(numbers))
    masks = "masks_human" if kind == "masks_human" else "masks_machine"
    for data_set, name in (("train", "a"), ("train", "b"), ("val", "c")):
        files.add(
            f"{data_set}/img/{name}.jpg",
            f"{data_set}/{masks}/{name}.png",
            kind="colors" if kind == "masks_human" else "grey",
        )
    path = prepare("folder", data_dir=tmp_path / "d", manual_dir=files.root)
    source = Source(path, "train")
    assert source.ids == ("a", "b")
    assert source.classes.names[1:] == NAMES[1:]
    for example in source:
        expected = files.labels[example["image"].tobytes()]
        np.testing.assert_array_equal(example["label"], expected)
    assert check.main([str(files.root)]) == 0
    assert "layout: Supervisely's" in capsys.readouterr().out
