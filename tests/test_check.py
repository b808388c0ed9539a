"""`fcn-jax check` and the survey of a folder: what masks mean, what is refused, what is told."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcn_jax import config as configs
from fcn_jax import data, drawing
from fcn_jax.classes import table_from_names
from fcn_jax.cli import check
from fcn_jax.cli.train import set_fields
from fcn_jax.data import folder, open_source, prepare, survey
from fcn_jax.data.images import encoded_pixels
from fcn_jax.data.records import Contents, Entry, Plan

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: Path, ids: np.ndarray, palette: tuple[tuple[int, int, int], ...] = ()) -> None:
    """A grey mask, or one with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
        image.putpalette([value for color in palette for value in color])
    image.save(path)


class Folder:
    """A folder of random images with masks in images/ and masks/, and a class file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)
        self.many = 0

    def classes(self, text: str, name: str = "classes.txt") -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / name).write_text(text)

    def add(self, ids: np.ndarray, split: str = "", palette: tuple = ()) -> str:
        """Adds a mask and an image of its size; returns the mask's name."""
        name = f"{split or '.'}/masks/x{self.many}.png".removeprefix("./")
        self.many += 1
        save(self.root / name, ids, palette)
        pixels = self.rng.integers(0, 256, (*ids.shape, 3), np.uint8)
        save(self.root / name.replace("masks", "images"), pixels)
        return name

    def draw(self, *values: int, many: int = 4, size: tuple[int, int] = (6, 7)) -> None:
        """Adds masks that hold all of the values."""
        for _ in range(many):
            ids = self.rng.choice(np.array(values, np.uint8), size)
            ids.flat[: len(values)] = values
            self.add(ids)

    def survey(self, **options) -> survey.Survey:
        return folder.plan(self.root, **options).survey

    def problems(self, **options) -> str:
        return "\n".join(self.survey(**options).problems.lines())


@pytest.fixture
def mine(tmp_path):
    return Folder(tmp_path / "mine")


def pixels_of(found: survey.Survey) -> dict[str, int]:
    """The pixels of every class over all splits, and of void."""
    total = sum(found.pixels.values(), np.zeros(256, np.int64))
    counts = dict(zip(found.classes.names, total.tolist(), strict=False))
    return counts | {"void": int(total[255])}


# ======================================================================== which id is which class


@pytest.mark.parametrize(
    ("classes", "values", "options", "problem", "proposals"),
    [
        # Ids 1..C, whether or not the last one occurs.
        ("sky\nroad\ncar", (1, 2, 3), {}, "give first_id=1", {"first_id": 1}),
        ("sky\nroad\ncar", (1, 2), {}, "no mask holds 0.*give first_id=1", {"first_id": 1}),
        ("sky\nroad\ncar", (1, 2), {"first_id": 1}, "", {}),
        ("sky\nroad\ncar", (1, 2), {"first_id": 0}, "", {}),
        ("sky\nroad\ncar", (1, 2, 255), {}, "no mask holds 0.*give first_id=1", {"first_id": 1}),
        ("sky\nroad\ncar", (0, 1, 2), {"void": (0,)}, "no mask holds 0", {"first_id": 1}),
        ("sky\nroad\ncar", (7, 8, 9), {}, "give first_id=7", {"first_id": 7}),
        ("Background\nroad\ncar", (1, 2), {}, "", {}),
        ("sky\nroad\ncar", (0, 1, 2), {}, "", {}),
        # 0 beside 1..C, as in ADE20K.
        ("sky\nroad", (0, 1, 2), {}, r"write background in the first line.*first_id=1", {}),
        ("sky\nroad", (0, 1, 2), {"first_id": 1, "void": (0,)}, "", {}),
        ("sky\nroad", (0, 1, 2), {"void": 2}, "", {}),
        # Ids that are nothing.
        ("sky\nroad", (0, 1, 9, 77), {}, r"values 9, 77 belong to .*void=\(9, 77\)", {}),
        ("sky\nroad", (0, 1, 9, 77), {"void": [9, 77]}, "", {}),
        ("sky\nroad", tuple(range(40)), {}, "So many look like a photograph", {}),
        # Black and white.
        ("no\nyes", (0, 255), {}, "", {}),
        ("person", (0, 255), {}, "train on are person or void: give the other pixels a class", {}),
        ("person", (0, 1), {}, "write background in the first line", {}),
        ("no\nyes", (0, 255), {"void": (0,)}, "train on are void", {}),
        ("no\nyes", (0, 255), {"void": (255,)}, "train on are no", {}),
        ("a\nb\nc", (0, 255), {}, r"train on are a or void.*thing,255", {}),
        # One class alone.
        ("sky\nroad", (0,), {}, "train on are sky", {}),
        ("sky\nroad", (255,), {}, "train on are void", {}),
    ],
)
def test_ids_and_options(mine, classes, values, options, problem, proposals):
    mine.classes(classes)
    mine.draw(*values, size=(8, 9))
    found = mine.survey(**options)
    lines = "\n".join(found.problems.lines())
    if problem:
        assert len(found.problems) == 1
        assert re.search(problem, lines), lines
    else:
        assert lines == ""
    assert found.proposals == proposals


def test_black_and_white_is_understood_and_told(mine, capsys):
    mine.classes("no\nyes")
    mine.draw(0, 255, many=5)
    white = sum((np.array(Image.open(path)) == 255).sum() for path in mine.root.glob("masks/*"))
    assert pixels_of(mine.survey()) == {"no": 5 * 42 - white, "yes": white, "void": 0}
    assert check.main([str(mine.root)]) == 0
    told = capsys.readouterr()
    assert "note: masks hold 0 and 255 alone: 255 is the class yes, not void" in told.out
    assert f"{100 * white / 210:.3f} %" in told.out


def test_grey_values_of_the_class_file_are_colours(mine):
    mine.classes("name,color\nlow,0 0 0\nmiddle,127 127 127\nhigh,255 255 255", "classes.csv")
    mine.draw(0, 127, 255)
    found = mine.survey()
    assert len(found.problems) == 0
    assert found.classes.ids == (0, 127, 255)
    assert pixels_of(found)["void"] == 0
    assert "label values 127" in mine.problems(mask_kind="index")


def test_ids_that_the_class_file_gives_are_not_doubted(mine):
    mine.classes("name,id\nsky,0\nroad,1\ncar,2\n", "classes.csv")
    mine.draw(1, 2)
    assert mine.problems() == ""
    with pytest.raises(ValueError, match=r"first_id=1 has no effect, as .*classes\.csv gives"):
        folder.plan(mine.root, first_id=1)


def test_percentages_are_right_in_a_set_that_fails(mine, capsys):
    mine.classes("sky\nroad")
    for split in ("train", "val"):
        mine.add(np.array([[0, 0, 1, 7], [1, 1, 7, 255]], np.uint8), split)
    (mine.root / "train/images/broken.png").write_bytes(b"no picture")
    save(mine.root / "train/masks/broken.png", np.zeros((2, 4), np.uint8))
    assert check.main([str(mine.root)]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shares = {row[-1]: row[2] for row in rows if "%" in row}
    assert {name: shares[name] for name in ("sky", "road")} == {"sky": "50.000", "road": "25.000"}
    # Of training alone, the broken image's mask too: 10 pixels of sky among 13, 3 of road among 5.
    weights = {row[-1]: row[-3:-1] for row in rows if "%" in row}
    assert (weights["sky"], weights["road"]) == (["0.650", "0.890"], ["2.167", "1.141"])
    assert ["?", "7", "16.667", "%"] in [row[:4] for row in rows]
    assert ["255", "255", "8.333", "%", "1", "/", "1", "void"] in rows


# ======================================================================== colours


def test_palettes_that_differ(mine):
    mine.classes("sky\nroad")
    ids = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    first = mine.add(ids, palette=(RED, GREEN))
    for _ in range(4):
        mine.add(ids, palette=(RED, GREEN))
    assert mine.problems() == ""
    last = mine.add(ids, palette=(RED, BLUE))
    text = rf"{last}: palettes differ: 1 is \(0, 0, 255\) here and \(0, 255, 0\) in {first}"
    with pytest.raises(ValueError, match=text):
        folder.plan(mine.root).contents()
    assert mine.problems(mask_kind="index") == ""
    mine.classes("name,color\nsky,#ff0000\nroad,#00ff00\nsea,#0000ff", "classes.csv")
    assert pixels_of(mine.survey()) == {"sky": 18, "road": 15, "sea": 3, "void": 0}


def test_colours_of_no_class_are_told_of_each_mask(mine):
    mine.classes("name,r,g,b\nsky,1,2,3\nroad,4,5,6\n", "classes.csv")
    for i, color in enumerate([(4, 5, 6), (4, 5, 6), (7, 8, 9), (9, 9, 8)]):
        pixels = np.full((3, 4, 3), (1, 2, 3), np.uint8)
        pixels[1] = color
        save(mine.root / f"masks/x{i}.png", pixels)
        save(mine.root / f"images/x{i}.png", mine.rng.integers(0, 256, (3, 4, 3), np.uint8))
    assert mine.problems() == (
        "2 files: colours of no class: masks/x2.png ((7, 8, 9)), masks/x3.png ((9, 9, 8))"
    )
    (mine.root / "masks/x3.png").unlink()
    assert mine.problems(skip_unlabeled=True) == ("masks/x2.png: colours of no class: (7, 8, 9)")


def test_a_palette_of_other_colors_among_renumbered_ones(mine):
    """Alone its indices would be believed: sky is where it belongs, and white is no class."""
    mine.classes("name,color\nsky,#000000\nroad,#00ff00\nsea,#0000ff", "classes.csv")
    ids = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    black, white = (0, 0, 0), (255, 255, 255)
    other = mine.add(ids, palette=(black, white))
    assert mine.problems() == ""
    moved = mine.add(ids, palette=(GREEN, BLUE))
    text = mine.problems()
    assert f"{other}: its palette has {white}, the colour of no class, and masks such as" in text
    assert f"{moved} have renumbered palettes" in text
    assert "renumbered" not in mine.problems(mask_kind="index")


# ======================================================================== copies, sizes, grouping


def test_equal_problems_are_grouped(mine, capsys):
    mine.classes("sky\nroad")
    mine.draw(0, 1, many=20)
    for i in range(6):
        save(mine.root / f"masks/x{i}.png", np.zeros((2 + i, 3), np.uint8))
    for i in range(6, 11):
        (mine.root / f"images/x{i}.png").write_bytes(b"x" * i)
    save(mine.root / "masks/x12.png", np.ascontiguousarray(np.zeros((7, 6), np.uint8)))
    assert check.main([str(mine.root)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("problem")]
    assert lines == [
        "problem: 6 files: masks of another size than their image: masks/x0.png (3x2, not 7x6), "
        "masks/x1.png (3x3, not 7x6), masks/x2.png (3x4, not 7x6) and 3 more",
        "problem: 5 files: not an image file that can be read: images/x10.png, images/x6.png, "
        "images/x7.png and 2 more",
        "problem: masks/x12.png: 6x7 pixels, but its image images/x12.png has 7x6 (width and "
        "height are exchanged)",
    ]


def test_one_image_in_two_splits_by_its_pixels(mine):
    mine.classes("sky\nroad")
    for split in ("train", "train", "val", "val"):
        mine.add(np.array([[0, 1, 1]], np.uint8), split)
    for number, split in ((7, "train"), (8, "val")):
        shutil.copy(mine.root / "train/masks/x0.png", mine.root / f"{split}/masks/x{number}.png")
        with Image.open(mine.root / "train/images/x0.png") as image:
            image.save(mine.root / f"{split}/images/x{number}.png", compress_level=0)
    found = mine.survey()
    assert found.problems.lines() == [
        "val/images/x8.png: the same image as train/images/x0.png, in val and in train"
    ]
    assert found.warnings == [
        "1 images are there twice: train/images/x7.png (= train/images/x0.png)"
    ]


# ======================================================================== what is told of classes


def test_rare_and_absent_classes_and_much_void(mine, capsys):
    mine.classes("background\ndefect\nscratch\nstain")
    for i in range(30):
        ids = np.zeros((40, 50), np.uint8)
        ids[:25] = 255
        ids[30:34, :4] = i == 3
        ids[39, :20] = 2 * (i < 25)
        mine.add(ids, "train" if i < 25 else "val")
    assert check.main([str(mine.root)]) == 0
    told = capsys.readouterr().err
    assert "warning: 1 of 4 classes have no pixel: stain." in told
    assert "1 of 4 classes are rare: defect (16 pixels in 1 of 30 masks). What helps" in told
    assert "2 classes have no pixel in val and have no score there: defect, scratch." in told
    assert "warning: 62 % of all pixels are void" in told


def test_splits_that_are_missing(mine, capsys):
    mine.classes("sky\nroad")
    mine.add(np.array([[0, 1]], np.uint8), "train")
    assert check.main([str(mine.root)]) == 0
    assert "warning: there is no split val to score on" in capsys.readouterr().err
    mine.add(np.array([[0, 1]], np.uint8), "test")
    assert check.main([str(mine.root)]) == 0
    assert "--config.eval_split=test" in capsys.readouterr().out
    shutil.rmtree(mine.root / "train")
    assert check.main([str(mine.root)]) == 2
    assert "no image to train on; it has test (1 images)" in capsys.readouterr().err


# ======================================================================== class files and commands


@pytest.mark.parametrize(
    ("values", "palette", "expected", "void"),
    [
        ((0, 2, 5, 255), (), "name,id\nclass 0,0\nclass 2,2\nclass 5,5\n", "; 255 is void"),
        ((0, 255), (), "name,id\nclass 0,0\nclass 255,255\n", ""),
        ((0, 1), (RED, BLUE), "name,id,r,g,b\nclass 0,0,255,0,0\nclass 1,1,0,0,255\n", ""),
    ],
)
def test_a_class_file_is_written_from_ids(mine, capsys, values, palette, expected, void):
    for _ in range(3):
        ids = mine.rng.permutation(np.resize(np.array(values, np.uint8), (4, 5)))
        mine.add(ids, palette=palette)
    assert check.main([str(mine.root)]) == 2
    assert "--write_classes" in capsys.readouterr().err
    assert check.main([str(mine.root), "--write_classes"]) == 0
    assert void in capsys.readouterr().out
    written = mine.root / "classes.csv"
    assert written.read_text() == expected
    assert check.main([str(mine.root)]) == 0
    for name in ("--write_classes", f"--write_classes={written}"):
        assert check.main([str(mine.root), name]) == 2
        assert f"{written} exists; give another name" in capsys.readouterr().err
    assert written.read_text() == expected
    assert check.main([str(mine.root), f"--write_classes={mine.root}/other.csv"]) == 0
    assert (mine.root / "other.csv").read_text() == expected


def test_a_class_file_is_written_from_colours(mine):
    colors = np.array([(0, 0, 0), RED, (10, 20, 30), (224, 224, 192)], np.uint8)
    for many in (2, 3, 4):
        save(
            mine.root / f"masks/x{many}.png",
            colors[mine.rng.permutation(np.resize(range(many), (3, 4)))],
        )
        save(mine.root / f"images/x{many}.png", mine.rng.integers(0, 256, (3, 4, 3), np.uint8))
    folder.write_classes(mine.root)
    expected = "name,r,g,b\nclass 0,0,0,0\nclass 1,10,20,30\nclass 2,255,0,0\n"
    assert (mine.root / "classes.csv").read_text() == expected
    assert mine.problems() == ""
    # Palettes that differ are no ids.
    (mine.root / "classes.csv").unlink()
    shutil.rmtree(mine.root / "masks")
    for palette, many in (((RED, BLUE), 2), ((BLUE, GREEN), 3), ((RED, GREEN), 4)):
        save(
            mine.root / f"masks/x{many}.png",
            np.resize(np.arange(2, dtype=np.uint8), (3, 4)),
            palette,
        )
    folder.write_classes(mine.root)
    expected = "name,r,g,b\nclass 0,0,0,255\nclass 1,0,255,0\nclass 2,255,0,0\n"
    assert (mine.root / "classes.csv").read_text() == expected


@pytest.mark.parametrize("proposed", [False, True])
def test_the_command_at_the_end_trains_on_these_data(tmp_path, capsys, proposed):
    mine = Folder(tmp_path / "my photo's")
    mine.classes("sky\nroad\ncar", "my names.txt")
    mine.draw(1, 2, 3, 0, many=12)
    options = ["--void", "0", "255", f"--classes={mine.root}/my names.txt", "--val_fraction=.3"]
    options += [] if proposed else ["--first_id=1"]
    assert check.main([str(mine.root), *options]) == int(proposed)
    lines = capsys.readouterr().out.splitlines()
    command, again = shlex.split(lines[-1]), [line for line in lines if "fcn-jax check" in line]
    assert command[:3] == ["fcn-jax", "train", "--config=folder"]
    config = configs.load_config("folder")
    set_fields(config, command[3:])
    configs.validate(config)
    source = open_source(
        "folder", "train", **{**configs.data_options(config), "data_dir": tmp_path}
    )
    assert source.classes.names == ("sky", "road", "car")
    for example in source:
        stored = np.array(Image.open(mine.root / f"masks/{example['id']}.png"))
        np.testing.assert_array_equal(example["label"], stored - np.uint8(1))
    assert len(again) == int(proposed)
    if proposed:
        assert check.main(shlex.split(again[0])[2:]) == 0


@pytest.mark.parametrize(
    ("size", "scale"), [((375, 500), None), ((700, 1000), None), ((1500, 2000), 0.1)]
)
def test_large_photographs_are_trained_at_a_smaller_scale(tmp_path, capsys, size, scale):
    """So that a crop shows as much of one as of a photograph of 500x375."""
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for value in (0, 1, 2):
            pixels = np.zeros(size, np.uint8)
            pixels[value::3] = 1
            Image.fromarray(pixels).save(tmp_path / kind / f"{value}.png")
    assert check.main([str(tmp_path), "--config=folder:cpu"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    given = [word for word in command if word.startswith("--config.scale")]
    assert given == ([] if scale is None else [f"--config.scale={scale}"])


def test_every_option_of_the_check_is_one_of_the_data_set(capsys):
    with pytest.raises(SystemExit):
        check.main(["--help"])
    flags = {
        line.split()[0][2:] for line in capsys.readouterr().out.splitlines() if line[:4] == "  --"
    }
    options = configs.load_config("folder").dataset_options.to_dict()
    assert flags - {"help", "write_classes", "draw", "draw_to", "config"} == set(options)


# ======================================================================== what is prepared


def test_the_folder_is_named_always(mine, tmp_path, capsys):
    mine.classes("sky\nroad")
    mine.draw(0, 1)
    where = {"data_dir": tmp_path / "d", "manual_dir": mine.root}
    path = prepare("folder", **where)
    with pytest.raises(
        FileNotFoundError, match=r"no data; give the folder .*--config\.manual_dir="
    ):
        prepare("folder", data_dir=tmp_path / "d")
    # Once prepared it may be gone, if nothing else is asked for.
    mine.root.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert prepare("folder", **where, first_id=None, mask_kind="auto") == path
    assert f"the copy that was prepared before, in {path}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"prepared with void=\[\], not \[1\]; give the folder of"):
        prepare("folder", **where, void=(1,))
    with pytest.raises(FileNotFoundError, match=r"no folder .*another"):
        prepare("folder", data_dir=tmp_path / "d", manual_dir=tmp_path / "another")
    assert open_source("folder", "train", **where).origin == str(mine.root)


def test_options_are_compared_where_the_files_are_not_given(tmp_path, monkeypatch, rng):
    """A data set that is the same for everybody, with an option."""

    def plan(manual_dir: Path | None = None, strength: int = 1) -> Plan:
        if manual_dir is None:
            raise FileNotFoundError("toy: no data; give it as manual_dir")
        images = rng.integers(0, 256, (3, 4, 5, 3), np.uint8)
        entries = [
            Entry(
                str(i), lambda i=i: {"image": encoded_pixels(images[i]), "label": images[i, ..., 0]}
            )
            for i in range(3)
        ]
        table = table_from_names("sky, road")
        return Plan(
            f"copy-{strength}", lambda: Contents({"train": entries}, {"label": table}, "Ulm")
        )

    monkeypatch.setitem(sys.modules, "toy_set", SimpleNamespace(plan=plan))
    monkeypatch.setitem(data.DATASETS, "toy", data.DataSet("toy_set"))
    where = {"data_dir": tmp_path / "d"}
    with pytest.raises(FileNotFoundError, match="no data; give it as manual_dir"):
        prepare("toy", **where)
    first = prepare("toy", **where, manual_dir=tmp_path)
    assert prepare("toy", **where) == prepare("toy", **where, strength=1) == first
    assert open_source("toy", "train", **where).origin == "Ulm"
    with pytest.raises(
        ValueError, match=r"prepared with strength=1, not 2; give the folder of the"
    ):
        prepare("toy", **where, strength=2)
    second = prepare("toy", **where, manual_dir=tmp_path, strength=2)
    assert prepare("toy", **where, strength=2) == second
    assert prepare("toy", **where, strength=1) == first
    with pytest.raises(ValueError, match="several copies of toy"):
        prepare("toy", **where)


def test_files_that_are_left_out_are_told(mine, capsys):
    mine.classes("sky\nroad")
    mine.draw(0, 1)
    save(mine.root / "elsewhere/old.png", np.zeros((3, 3), np.uint8))
    (mine.root / "images/notes.txt").write_text("nothing")
    (mine.root / "images/raw.cr2").write_bytes(b"1")
    shutil.copy(mine.root / "images/x0.png", mine.root / "images/._x0.png")
    shutil.copy(mine.root / "images/x0.png", mine.root / "images/without_suffix")
    (mine.root / "annotations.json").write_text(
        '{"images": [], "annotations": [], "categories": []}'
    )
    assert check.main([str(mine.root)]) == 0
    told = capsys.readouterr().out
    assert "note: elsewhere: left out 1 files, such as old.png: not of this layout" in told
    for name in ("raw.cr2", "._x0.png", "without_suffix"):
        assert f"note: images: left out 1 files, such as {name}: " in told
    assert "1 annotation files of COCO, such as annotations.json, are not read" in told
    assert "notes.txt" not in told


# ======================================================================== what the network will see


@pytest.fixture
def drawn(mine, monkeypatch):
    """A folder of five images, and the panels that are drawn of them."""
    monkeypatch.chdir(mine.root.parent)
    mine.classes("sky\nroad\ncar")
    mine.draw(0, 1, 2, 255, many=5, size=(21, 34))
    seen: list[dict] = []
    draw = drawing.side_by_side
    monkeypatch.setattr(
        drawing, "side_by_side", lambda panels, table: seen.append(panels) or draw(panels, table)
    )
    return seen


PLAIN = "--config.flip=False --config.scale=1. --config.scale_range=(1.,1.) --config.crop=()"


def test_the_sheet_shows_what_the_network_will_see(mine, drawn, capsys):
    argv = [str(mine.root), "--draw=4", "--config=folder:cpu", *PLAIN.split()]
    assert check.main([*argv, "--draw_to=plain.png"]) == 0
    told = capsys.readouterr().out
    assert "plain.png: 4 training images" in told
    assert "fcn-jax train --config=folder:cpu" in told
    assert PLAIN.split()[0] in told
    assert len(drawn) == 4
    train = mine.survey().readings["train"]
    for panels in drawn:
        (example_id, image), (_, label) = panels.items()
        assert example_id in train
        for folder_name, found in (("images", image), ("masks", label)):
            (file,) = mine.root.glob(f"{folder_name}/{Path(example_id).name}.png")
            np.testing.assert_array_equal(found, np.asarray(Image.open(file)))
    with Image.open("plain.png") as sheet:
        assert min(sheet.size) > 256

    drawn.clear()
    changes = ["--config.rotation=30", "--config.copy_paste=1.", "--config.jpeg=5"]
    for _ in range(2):
        assert check.main([*argv, *changes]) == 0
    assert Path("augmented.png").is_file()
    for first, again in zip(drawn[:4], drawn[4:], strict=True):  # the seed's
        assert first["label"][0, 0] == 255  # an empty corner
        for name, values in first.items():
            np.testing.assert_array_equal(values, again[name])


def test_what_cannot_be_drawn_is_told(mine, drawn, capsys):
    for file in mine.root.glob("images/*"):
        np.save(file.with_suffix(".npy"), mine.rng.integers(0, 9, (21, 34, 4), np.uint8))
        file.unlink()
    assert check.main([str(mine.root), "--draw", "--config.grey=0.5"]) == 2
    assert "config.grey = 0.5: an image of 4 bands" in capsys.readouterr().err
    mine.draw(7)
    assert check.main([str(mine.root), "--draw=3"]) == 1
    assert "augmented.png is drawn when all is mended" in capsys.readouterr().err
    assert not Path("augmented.png").exists()
    with pytest.raises(SystemExit):
        check.main([str(mine.root), "--config.grey=0.5"])
    assert not drawn
