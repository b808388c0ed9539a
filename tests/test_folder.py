"""`folder`: a person's own images and masks, in every layout, and the list of all problems."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import send_entries
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_writing import bytes_of

from fcn_jax.cli import check
from fcn_jax.data import Source, folder, open_source, prepare, readings
from fcn_jax.data.bands import UsedRange
from fcn_jax.data.source import split_sizes

NAMES = ("ground", "cat", "dog")
COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 200, 100)], np.uint8)


@pytest.fixture(autouse=True)
def _as_to_processes(monkeypatch):
    send_entries(monkeypatch)


class Tree:
    """A folder of random images with masks of ids 0..2 and void."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)
        self.ground_truth: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        root.mkdir(parents=True)

    def add(self, name: str, image: str, mask: str, mode: str = "L") -> None:
        size = tuple(self.rng.integers(5, 30, 2))
        pixels = self.rng.integers(0, 256, (*size, 3), np.uint8)
        ids = self.rng.choice([0, 1, 2, 255], size).astype(np.uint8)
        for path in (self.root / image, self.root / mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.root / image)
        if mode == "RGB":
            ids[ids == 255] = 0
            Image.fromarray(COLORS[ids]).save(self.root / mask)
        elif mode == "P":
            palette = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
            palette.putpalette(np.resize(COLORS, (256, 3)).ravel().tolist())
            palette.save(self.root / mask)
        else:
            Image.fromarray(ids).save(self.root / mask)
        with Image.open(self.root / image) as file:
            self.ground_truth[name] = np.array(file), ids

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def check(self, data_dir: Path, splits: dict[str, tuple[str, ...]], **options) -> None:
        for split, names in splits.items():
            source = open_source(
                "folder", split, data_dir=data_dir, manual_dir=self.root, **options
            )
            assert source.ids == names
            assert source.classes.names == NAMES
            for example in source:
                image, label = self.ground_truth[f"{split}/{example['id']}"]
                np.testing.assert_array_equal(example["image"], image)
                np.testing.assert_array_equal(example["label"], label)


@pytest.fixture
def tree(tmp_path):
    tree = Tree(tmp_path / "mine")
    tree.write("classes.txt", "\n".join(NAMES))
    return tree


@pytest.mark.parametrize("masks", ["masks", "labels", "annotations"])
@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_layouts_with_splits(tree, tmp_path, layout, masks):
    splits = {"train": ("a", "b"), "val": ("a",), "test": ("z",)}
    for split, names in splits.items():
        image, mask = (layout.format(split=split, kind=kind) for kind in ("images", masks))
        for name in names:
            tree.add(f"{split}/{name}", f"{image}/{name}.jpg", f"{mask}/{name}.png")
    tree.check(tmp_path / "d", splits)


def splits_of(tree: Tree, data_dir: Path, **options) -> dict[str, str]:
    """The split of every image of a folder."""
    path = prepare("folder", data_dir=data_dir, manual_dir=tree.root, **options)
    return {name: split for split in split_sizes(path) for name in Source(path, split).ids}


def test_one_folder_is_cut_by_a_seed(tree, tmp_path):
    for i in range(12):
        tree.add(f"{i:02}", f"images/{i:02}.png", f"masks/{i:02}.png")
    halves = {"val_fraction": 0.5, "test_fraction": 0}
    first = splits_of(tree, tmp_path / "d", **halves)
    assert sorted(first) == [f"{i:02}" for i in range(12)]
    assert set(first.values()) == {"train", "val"}
    assert splits_of(tree, tmp_path / "e", **halves) == first  # another computer
    assert splits_of(tree, tmp_path / "d", seed=1, **halves) != first
    assert set(splits_of(tree, tmp_path / "d").values()) == {"train", "val", "test"}

    # An image under another name, or with other metadata, stays where it is, and its copy with it.
    for kind in ("images", "masks"):
        (tree.root / kind / "05.png").rename(tree.root / kind / "zz.png")
        shutil.copy(tree.root / kind / "03.png", tree.root / kind / "a copy.png")
    with Image.open(tree.root / "images/07.png") as image:
        info = PngInfo()
        info.add_text("Software", "an editor")
        image.save(tree.root / "images/07.png", pnginfo=info, compress_level=1)
    again = splits_of(tree, tmp_path / "d", **halves)
    assert again.pop("a copy") == again["03"]
    assert again.pop("zz") == first.pop("05")
    assert again == first


def test_the_cut_holds_when_images_come_and_go(rng):
    digests = {f"{i}": f"{digest:016x}" for i, digest in enumerate(rng.integers(0, 2**63, 105))}
    fractions = {"val": 0.1, "test": 0.1}
    first = folder.cut(dict(list(digests.items())[:100]), fractions, 0)
    grown = folder.cut(digests, fractions, 0)
    assert {name: grown[name] for name in first} == first
    gone = rng.choice(105, 10, replace=False).astype(str)
    fewer = folder.cut({n: d for n, d in digests.items() if n not in gone}, fractions, 0)
    assert fewer == {name: split for name, split in grown.items() if name not in gone}


@pytest.mark.parametrize("many", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    "fractions", [{"val": 0.1, "test": 0.1}, {"val": 0.4, "test": 0}, {"val": 0, "test": 0}]
)
def test_no_split_is_empty_unless_asked_to(rng, many, fractions):
    for seed in range(20):
        digests = {str(i): str(rng.integers(2**63)) for i in range(many)}
        wanted = {split for split, fraction in fractions.items() if fraction and many >= 3}
        assert set(folder.cut(digests, fractions, seed).values()) == {"train", *wanted}


def test_shares_of_a_large_cut(rng):
    digests = {str(i): str(rng.integers(2**63)) for i in range(4000)}
    sizes = Counter(folder.cut(digests, {"val": 0.2, "test": 0.05}, 0).values())
    assert abs(sizes["val"] / 4000 - 0.2) < 0.03  # 4.7 standard deviations
    assert abs(sizes["test"] / 4000 - 0.05) < 0.017


def test_globs_pair_what_the_stars_match(tree, tmp_path):
    for city, frame in (("york", "1"), ("york", "2"), ("bath", "1")):
        tree.add(
            f"train/{city}_{frame}",
            f"photos/train/{city}/f{frame}_rgb.jpg",
            f"ground_truth/train/{city}/f{frame}_gt.png",
        )
    tree.add("val/york_9", "photos/val/york/f9_rgb.png", "ground_truth/val/york/f9_gt.png")
    (tree.root / "photos/train/york/notes.txt").touch()
    tree.check(
        tmp_path / "d",
        {"train": ("bath_1", "york_1", "york_2"), "val": ("york_9",)},
        images="photos/{split}/*/f*_rgb.*",
        masks="ground_truth/{split}/*/f*_gt.png",
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_masks_of_ids_palette_and_colors(tree, tmp_path, mode):
    (tree.root / "classes.txt").unlink()
    rows = [f"{n},{r},{g},{b}" for n, (r, g, b) in zip(NAMES, COLORS.tolist(), strict=True)]
    tree.write("classes.csv", "\n".join(["name,r,g,b", *rows]))
    tree.add("train/a", "train/images/a.jpg", "train/masks/a.png", mode)
    tree.check(tmp_path / "d", {"train": ("a",)})


def test_first_id_and_void(tree, tmp_path):
    tree.add("train/a", "train/images/a.png", "train/masks/a.png")
    _, ids = tree.ground_truth["train/a"]
    stored = np.select([ids == 0, ids == 1, ids == 2], [1, 2, 3], 0).astype(np.uint8)
    stored[0, 0] = 17
    Image.fromarray(stored).save(tree.root / "train/masks/a.png")
    ids[0, 0] = 255
    tree.check(tmp_path / "d", {"train": ("a",)}, first_id=1, void=(0, 17))


def test_grey_masks_with_255_as_a_class(tree, tmp_path):
    tree.add("train/a", "train/images/a.png", "train/masks/a.png")
    size = tree.ground_truth["train/a"][1].shape
    mask = tree.rng.choice([0, 255], size).astype(np.uint8)
    Image.fromarray(mask).save(tree.root / "train/masks/a.png")
    where = {"data_dir": tmp_path / "d", "manual_dir": tree.root}
    with pytest.raises(ValueError, match=r"to train on are ground or void.*thing,255"):
        prepare("folder", **where)
    for text, options in (
        ("name,color\nground,#000000\nthing,#ffffff\n", {"mask_kind": "color"}),
        ("name,color\nground,#000000\nthing,#ffffff\n", {}),
        ("name,color\nground,#000000\nthing,#ff0000\n", {}),
        ("name\nground\nthing", {}),
        ("name,id\nground,0\nthing,255", {}),
    ):
        tree.write("two.csv", text)
        source = open_source("folder", "train", **where, classes="two.csv", **options)
        np.testing.assert_array_equal(source[0]["label"], mask == 255)


def test_all_problems_come_in_one_list(tree, tmp_path, capsys):
    for name in "abcdefgh":
        tree.add(f"train/{name}", f"train/images/{name}.png", f"train/masks/{name}.png")
    tree.add("val/v", "val/images/v.png", "val/masks/v.png")
    root = tree.root
    (root / "train/masks/a.png").unlink()
    Image.new("L", (3, 4)).save(root / "train/masks/b.png")
    Image.new("L", Image.open(root / "train/images/c.png").size, 77).save(
        root / "train/masks/c.png"
    )
    whole = (root / "train/images/d.png").read_bytes()
    (root / "train/images/d.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/masks/e.png").write_text("no picture")
    Image.new("RGB", Image.open(root / "train/images/f.png").size, (1, 2, 3)).save(
        root / "train/masks/f.png"
    )
    (root / "val/images/g.png").write_bytes((root / "train/images/g.png").read_bytes())
    (root / "val/masks/g.png").write_bytes((root / "train/masks/g.png").read_bytes())
    with pytest.raises(ValueError, match="7 problems") as caught:
        prepare("folder", data_dir=tmp_path / "d", manual_dir=root)
    message = str(caught.value)
    for expected in (
        "train/images/a.png: no mask",
        "train/masks/b.png: 3x4 pixels, but its image train/images/b.png has",
        "train/masks/c.png: label values 77 belong to no class (known ids: 0..2; 255 is void)",
        "train/images/d.png: ",
        "train/masks/e.png: not an image file",
        "train/masks/f.png: is an RGB mask",
        "val/images/g.png: the same image as train/images/g.png",
    ):
        assert f"\n  {expected}" in message
    assert not list((tmp_path / "d").rglob("dataset_info.json"))
    assert check.main([str(root)]) == 1
    assert capsys.readouterr().err.count("problem: ") == 7


def test_a_changed_folder_is_prepared_anew(tree, tmp_path):
    tree.add("train/a", "train/images/a.png", "train/masks/a.png")
    where = {"data_dir": tmp_path / "d", "manual_dir": tree.root}
    first = prepare("folder", **where)
    assert prepare("folder", **where) == first
    tree.add("train/b", "train/images/b.png", "train/masks/b.png")
    assert open_source("folder", "train", **where).ids == ("a", "b")
    tree.write("classes.txt", "ground\ncat\nhorse")
    assert open_source("folder", "train", **where).classes.names[2] == "horse"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "a/*"}, "both globs"),
        ({"images": "{split}/*", "masks": "m/*"}, r"\{split\} must be in both"),
        ({"images": "a/*", "masks": "m/*"}, r"no image.* a/\*"),
        ({"images": "{split}/*", "masks": "{split}/m/*"}, r"no image.* \{split\}/\*"),
        ({}, "train/images and train/masks.*two globs"),
        ({"images": "/a/*.jpg", "masks": "m/*"}, r"'/a/\*\.jpg' must be relative to .*mine"),
        ({"mask_kind": "blue"}, "auto, index, color"),
    ],
)
def test_what_cannot_be_found(tree, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare("folder", data_dir=tmp_path / "d", manual_dir=tree.root, **options)


def test_no_class_file(tree, tmp_path):
    tree.add("train/a", "train/images/a.png", "train/masks/a.png")
    (tree.root / "classes.txt").unlink()
    where = {"data_dir": tmp_path / "d", "manual_dir": tree.root}
    with pytest.raises(FileNotFoundError, match=r"no classes\.csv.*one class name a line"):
        prepare("folder", **where)
    with pytest.raises(FileNotFoundError, match=r"no class file .*names\.txt"):
        prepare("folder", **where, classes="names.txt")
    tree.write("classes.csv", "road,1,2,3\n")
    with pytest.raises(ValueError, match=r"classes\.csv: not a class table"):
        prepare("folder", **where)


def test_ade20k_sample(shared, tmp_path, capsys, monkeypatch):
    root = tmp_path / "ade"
    root.mkdir()
    for name in ("images", "annotations"):
        (root / name).symlink_to(shared / "data/ade20k_sample" / name)
    (root / "classes.txt").write_text("\n".join(f"class {i}" for i in range(1, 151)))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check.main(["~/ade", "--first_id=1", "--void", "0"]) == 0
    captured = capsys.readouterr()
    assert "train 1, val 1, test 1" in captured.out
    assert "no problems" in captured.err
    source = open_source(
        "folder", "train+val+test", data_dir=tmp_path, manual_dir=root, first_id=1, void=(0,)
    )
    for example in source:
        raw = np.array(Image.open(shared / f"data/ade20k_sample/annotations/{example['id']}.png"))
        np.testing.assert_array_equal(example["label"], np.where(raw == 0, 255, raw - 1))


def test_the_check_reports_what_cannot_be_found(tmp_path, capsys):
    assert check.main([str(tmp_path / "none")]) == 2
    assert f"no folder {tmp_path}/none" in capsys.readouterr().err


def test_an_unchanged_folder_is_opened_without_a_look_at_what_belongs_together(
    tmp_path, monkeypatch
):
    tree = Tree(tmp_path / "m")
    for i in range(3):
        tree.add(f"{i}", f"train/images/{i}.png", f"train/masks/{i}.png")
    (tmp_path / "m/classes.txt").write_text("\n".join(NAMES))
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    first = prepare("folder", **where)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "find", None)
        assert prepare("folder", **where) == first
    # What is no part of it changes nothing, but is looked at.
    (tmp_path / "m/notes.txt").write_text("taken in May")
    assert prepare("folder", **where) == first
    other = prepare("folder", **where, void=7)
    assert other != first
    # A mask of the same size, changed in place.
    mask = tmp_path / "m/train/masks/1.png"
    content = mask.read_bytes()
    mask.write_bytes(content)
    os.utime(mask, ns=(0, 0))
    assert prepare("folder", **where) not in (first, other)
    mask.unlink()
    (tmp_path / "m/train/images/1.png").unlink()
    assert len(Source(prepare("folder", **where), "train")) == 2


# ======================================================================== a survey that goes on


class Counted:
    """Counts the images that are read, and stops at one of them as Ctrl-C would."""

    def __init__(self, monkeypatch, stop: int = -1) -> None:
        self.read, self.stop, self.then = [], stop, lambda image: None
        monkeypatch.setattr(readings, "READERS", 1)
        monkeypatch.setattr(readings, "_read", functools.partial(self._read, readings._read))

    def _read(self, read, image, *others):
        if len(self.read) == self.stop:
            raise KeyboardInterrupt
        self.read.append(image)
        self.then(image)
        return read(image, *others)


def write_many(root: Path, kind: str) -> None:
    """16 images with masks in a palette, with 16 bits, or with annotations of COCO."""
    rng, images, annotations = np.random.default_rng(0), [], []
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True)
    for number in range(16):
        name, width = f"images/{number}.png", 12 + number
        image = rng.integers(0, 4000, (11, width)).astype(np.uint16)
        image = image if kind == "16 bits" else image.astype(np.uint8)
        Image.fromarray(image).save(root / name)
        images.append({"id": number, "file_name": name, "height": 11, "width": width})
        runs = {"size": [11, width], "counts": [0, 5, 11 * width - 5]}
        one = {"id": number, "image_id": number, "category_id": 1, "segmentation": runs}
        annotations += [one, {**one, "id": 99, "segmentation": {**runs, "counts": [11 * width]}}]
        if kind != "drawn":
            mask = Image.fromarray((image % 3).astype(np.uint8)).convert("P")
            mask.putpalette(np.resize(COLORS, (256, 3)).ravel().tolist())
            mask.save(root / f"masks/{number}.png")
    content = {"images": images, "annotations": annotations}
    if kind == "drawn":
        content["categories"] = [{"id": 1, "name": "cat"}]
        (root / "annotations.json").write_text(json.dumps(content))
    else:
        (root / "classes.csv").write_text(
            "name,r,g,b\n"
            + "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in zip(NAMES, COLORS, strict=True))
        )


@pytest.mark.parametrize("harm", ["", "torn"])
@pytest.mark.parametrize("kind", ["palette", "16 bits", "drawn"])
def test_a_survey_goes_on_after_a_kill(tmp_path, monkeypatch, capfd, kind, harm):
    write_many(tmp_path / "m", kind)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    with monkeypatch.context() as patch:
        Counted(patch, stop=15)
        with pytest.raises(KeyboardInterrupt):
            prepare("folder", **where)
    kept = sorted(tmp_path.glob("d/folder/surveyed-*/*.npz"), key=lambda path: path.stat().st_size)
    if harm:
        kept[0].write_bytes(kept[0].read_bytes()[:-20])
    whole = [len(readings._kept(path, defaultdict(UsedRange)) or ()) for path in kept]
    assert sum(whole) > 4
    assert (whole[0] == 0) == bool(harm)
    capfd.readouterr()
    counted = Counted(monkeypatch)
    copy = prepare("folder", **where)
    assert len(counted.read) == 16 - sum(whole)
    told = f"Reading images and masks: goes on after {sum(whole)} of 16 images\n"
    assert told in capfd.readouterr().err
    assert bytes_of(copy) == bytes_of(prepare("folder", **{**where, "data_dir": tmp_path / "e"}))
    assert len(list((tmp_path / "d/folder").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    ["", "mask", "image", "image gone", "annotations", "colour", "alpha", "meanwhile", "version"],
)
def test_a_survey_reads_again_what_has_changed(tmp_path, monkeypatch, change):
    """Here because an image is damaged, and mended; that is read again in any case."""
    root = tmp_path / "m"
    write_many(root, "drawn" if change == "annotations" else "palette")
    where = {"data_dir": tmp_path / "d", "manual_dir": root}
    sound, status = (root / "images/9.png").read_bytes(), (root / "images/9.png").stat()
    (root / "images/9.png").write_bytes(bytes(len(sound)))
    with monkeypatch.context() as patch:
        counted = Counted(patch)
        if change == "meanwhile":  # and it is changed back
            here = root / "images/2.png"
            counted.then = lambda image: image == here and os.utime(here, ns=(1, 1))
        with pytest.raises(ValueError, match="1 problem"):
            prepare("folder", **where)
    (root / "images/9.png").write_bytes(sound)
    for path in [root / "images/9.png"] + [root / "images/2.png"] * (change == "meanwhile"):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if change == "mask":
        Image.fromarray(np.zeros((11, 14), np.uint8)).save(root / "masks/2.png")
    elif change == "image":
        Image.fromarray(np.zeros((11, 14), np.uint8)).save(root / "images/2.png")
    elif change == "image gone":
        (root / "images/2.png").unlink()
        (root / "masks/2.png").unlink()
    elif change == "annotations":
        os.utime(root / "annotations.json", ns=(1, 1))
    elif change == "colour":
        text = (root / "classes.csv").read_text()
        (root / "classes.csv").write_text(text.replace("0,200,100", "0,200,101"))
    elif change == "version":
        monkeypatch.setattr(readings, "__version__", "0")
    counted = Counted(monkeypatch)
    options = {"alpha": "drop"} if change == "alpha" else {}
    copy = prepare("folder", **where, **options)
    again = {path.stem for path in counted.read}
    everything = change in ("annotations", "colour", "alpha", "version")
    assert "9" in again
    assert (len(again) == 16) == everything
    assert ("2" in again) == (everything or change in ("mask", "image", "meanwhile"))
    anew = prepare("folder", **{**where, "data_dir": tmp_path / "e"}, **options)
    assert bytes_of(copy) == bytes_of(anew)
    assert not list(tmp_path.glob("d/folder/surveyed-*"))


KILLED = """
import sys
from fcn_jax.data import prepare, processes

if __name__ == "__main__":
    processes.FEW = 3
    prepare("folder", data_dir=sys.argv[1], manual_dir=sys.argv[2])
"""


@pytest.mark.slow
def test_what_processes_read_is_kept_when_all_are_killed(tmp_path, monkeypatch, capfd):
    write_many(tmp_path / "m", "palette")
    here = tmp_path / "m/images/7.png"
    sound = here.read_bytes()
    here.unlink()
    os.mkfifo(here)  # at which its process stays
    (tmp_path / "prepare.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "prepare.py", tmp_path / "d", tmp_path / "m"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env={**environ, "LOKY_MAX_CPU_COUNT": "2"})
    end = time.monotonic() + 100
    pairs = [(tmp_path / f"m/images/{i}.png", here) for i in range(16)]
    parts = [*readings._parts(pairs, tmp_path / "m")]
    while len(list(tmp_path.glob("d/folder/surveyed-*/*.npz"))) < len(parts) - 1:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    here.unlink()
    here.write_bytes(sound)
    counted = Counted(monkeypatch)
    monkeypatch.setattr(readings, "READERS", 4)  # of which the size of parts follows
    where = {"manual_dir": tmp_path / "m"}
    copy = prepare("folder", data_dir=tmp_path / "d", **where)
    assert here in counted.read
    assert len(counted.read) < 5
    assert "goes on after" in capfd.readouterr().err
    assert bytes_of(copy) == bytes_of(prepare("folder", data_dir=tmp_path / "e", **where))


@pytest.mark.slow
def test_several_processes_survey_what_one_does(tmp_path, monkeypatch, rng):
    """Of 16 bits, of a split each and none, with a file that is damaged and a mask of no class."""
    for number in range(9):
        image = rng.integers(0, 4000, (11, 12 + number)).astype(np.uint16)
        for place, picture in (
            (f"images/{number}.png", Image.fromarray(image)),
            (f"masks/{number}.png", Image.fromarray((image % 3).astype(np.uint8))),
        ):
            (tmp_path / place).parent.mkdir(exist_ok=True)
            picture.save(tmp_path / place)
    (tmp_path / "images/4.png").write_bytes(b"no picture")
    Image.fromarray(np.full((11, 17), 7, np.uint8)).save(tmp_path / "masks/5.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    monkeypatch.setattr("fcn_jax.data.readings.PART", 2)

    def surveyed(few):
        monkeypatch.setattr("fcn_jax.data.processes.FEW", few)
        survey = folder.FolderPlan(tmp_path).survey
        told = [survey.problems.lines(), survey.warnings, survey.notes]
        return survey.readings, told

    one = surveyed(600)
    assert surveyed(3) == one
    problems, _, notes = one[1]
    assert len(problems) == 2
    assert any("and use " in note for note in notes)
