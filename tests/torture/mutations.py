"""Files of every kind that is read, changed at random: each is read, or refused in one line.

    python tests/torture/mutations.py [--count 100000]

A trial reads a block of files of one kind in a child whose address space may grow by 2 GiB.
Failures are an error that is neither ValueError nor OSError, a message of several lines or one that
does not name the file, a crash, more than two seconds of computing, or more memory. A file that
failed is kept in DIR/seedS/failing, and ``--replay TRIAL`` shows its errors.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import campaign
import mutate
import numpy as np

MEMORY = 2 << 30  # bytes
HANG = 2.0  # seconds of computing
STUCK = 30.0  # seconds of waiting

# ======================================================================== what is read


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: examples of it, and what reads one.

    Attributes:
        make: Writes examples into an empty folder.
        read: Is given the path of a changed file, in its place in the folder, and the folder.
        block: How many are read in one trial.
        share: How often the kind's turn comes.
        files: Which of the files of the folder are changed.
        one_line: Whether an error must be one line.
        named: Whether it must name the file or a folder that it is in.
    """

    make: Callable[[Path], None]
    read: Callable[[Path, Path], object]
    block: int = 500
    share: int = 1
    files: str = "**/*"
    one_line: bool = True
    named: bool = True


KINDS: dict[str, Kind] = {}


def noise(*shape: int, dtype: Any = np.uint8, high: int = 256, seed: int = 0) -> np.ndarray:
    """Random values, the same for a seed."""
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def write_images(folder: Path) -> None:
    """Every format and mode in use."""
    from PIL import Image

    rgb = Image.fromarray(noise(23, 17, 3))
    grey, wide = Image.fromarray(noise(23, 17)), Image.fromarray(noise(9, 11, dtype=np.uint16) * 7)
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("png", "jpg", "bmp", "gif", "tif", "webp", "ppm", "tga", "jp2"):
        with contextlib.suppress(OSError):  # a Pillow without that format
            rgb.save(folder / f"rgb.{suffix}")
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "turned.png", exif=exif)
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("1").save(folder / "bits.png")
    grey.save(folder / "grey.png")
    wide.save(folder / "wide.png")
    wide.save(folder / "wide.tif")
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        rgb.save(folder / f"{compression}.tif", compression=compression)
    Image.fromarray(noise(9, 11).astype(np.float32)).save(folder / "float.tif")
    rgb.save(folder / "film.gif", save_all=True, append_images=[rgb.convert("L")] * 2)
    for file in (Path(__file__).parent / "bands").glob("*.tif"):
        shutil.copy(file, folder)


def read_image(path: Path, folder: Path) -> None:
    """As an image of training and of prediction."""
    from fcn_jax.data import images

    images.encoded_image(path)
    images.read_image(path)


def write_masks(folder: Path) -> None:
    """Masks of ids and of colours."""
    from PIL import Image

    ids = noise(23, 17, high=3)
    grey = Image.fromarray(ids)
    palette = Image.fromarray(ids)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    colors = Image.fromarray(np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)[ids])
    for suffix in ("png", "bmp", "gif", "tif", "tga", "webp"):
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        grey.save(folder / f"grey.{suffix}", **options)
        colors.save(folder / f"colors.{suffix}", **options)
    palette.save(folder / "palette.png")
    palette.save(folder / "palette.gif")
    palette.save(folder / "palette.tif")
    palette.save(folder / "palette_alpha.png", transparency=1)
    Image.fromarray(ids.astype(np.uint16)).save(folder / "wide.png")
    Image.fromarray(ids.astype(np.int32)).save(folder / "int.tif")
    grey.convert("1").save(folder / "bits.png")
    grey.convert("LA").save(folder / "grey_alpha.png")
    colors.convert("RGBA").save(folder / "alpha.png")


def read_mask(path: Path, folder: Path) -> None:
    """By ids and by colours."""
    from fcn_jax.classes import ClassRow, ClassTable
    from fcn_jax.data.records import read_labels

    colors = {"ground": (0, 0, 0), "tree": (128, 0, 0), "house": (0, 128, 0)}
    table = ClassTable(tuple(ClassRow(name, color) for name, color in colors.items()))
    errors = []
    for given in (None, table):
        try:
            read_labels(path, table, "auto", given)
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


def write_npy(folder: Path) -> None:
    """Masks as arrays."""
    for dtype in ("u1", "<i2", ">i4", "<i8", "<f4", "?"):
        np.save(folder / f"{np.dtype(dtype).name}.npy", noise(9, 8, high=3).astype(dtype))
    np.save(folder / "fortran.npy", np.asfortranarray(noise(9, 8, high=3)))
    np.save(folder / "planes.npy", noise(9, 8, 1, high=3))


def write_depth(folder: Path) -> None:
    """Depth in millimetres."""
    from PIL import Image

    depth = Image.fromarray(noise(23, 17, dtype=np.uint16, high=9000))
    depth.save(folder / "depth.png")
    depth.save(folder / "depth.tif")


def read_depth(path: Path, folder: Path) -> None:
    """As a modality."""
    from fcn_jax.data import images

    images.read_depth(path)


def write_class_tables(folder: Path) -> None:
    """In each form."""
    from fcn_jax.classes import table_from_names

    rows = [
        {"name": "ground", "color": [0, 0, 0], "id": 3},
        {"name": "tree, large", "color": "#80ff00", "ignored": False, "scored": "no"},
        {"name": "void", "ignored": True, "id": 255},
    ]
    table = table_from_names("a,b,c", first_id=1)
    contents = {
        "plain.txt": "ground\ntree\nhouse\n",
        "colors.csv": "name,r,g,b\nground,0,0,0\ntree,128,0,0\nhouse,0,128,0\n",
        "full.csv": "id;name;color;ignored;scored\n3;ground;#102030;;\n4;tree;1 2 3;true;no\n",
        "tabs.csv": 'name\tid\n"a ""quoted"" one"\t7\nb\t9\n',
        "rows.json": json.dumps(rows),
        "names.json": json.dumps(["ground", "tree"]),
        "colors.json": json.dumps({"ground": [0, 0, 0], "tree": [255, 0, 0]}),
        "ours.json": json.dumps(table.to_dict()),
        "synsets.txt": "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)


def read_class_table(path: Path, folder: Path) -> None:
    """As classes, and as names for weights."""
    from fcn_jax import classes

    try:
        classes.read_names(path)
    finally:  # more is asked of tables that can be read
        classes.load_class_table(path)
        classes.has_colors(path)


def write_weights(folder: Path) -> None:
    """A small file of each kind."""
    import test_weights_hostile as hostile

    for name, write in hostile.WRITERS.items():
        with contextlib.suppress(Exception):  # PyTorch may be absent
            write(folder / re.sub(r"\W+", "_", name))


def read_weights(path: Path, folder: Path) -> None:
    """As start weights."""
    from fcn_jax import weights

    weights.load(path)


def write_mat(folder: Path) -> None:
    """As MATLAB up to version 7 writes them."""
    import scipy.io

    ids = noise(23, 17, high=3)
    content = {"S": ids, "other": [[1.0, 2.0]], "text": "abc", "cell": np.array([[1], "a"], object)}
    struct_ = {"GTcls": {"Segmentation": ids, "Boundaries": np.array([[1, 2]])}, "S": ids}
    scipy.io.savemat(folder / "plain.mat", content)
    scipy.io.savemat(folder / "compressed.mat", content, do_compression=True)
    scipy.io.savemat(folder / "struct.mat", struct_)
    scipy.io.savemat(folder / "float.mat", {"S": ids.astype(np.float64)}, do_compression=True)
    scipy.io.savemat(folder / "four.mat", {"S": ids.astype(np.float64)}, format="4")
    scipy.io.savemat(folder / "small.mat", {"S": ids[:2, :2]})


def write_mat73(folder: Path) -> None:
    """As MATLAB's version 7.3, which is HDF5."""
    import h5py

    ids = noise(17, 23, high=3)
    for name, options in {
        "plain": {},
        "chunked": {"chunks": (4, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
    }.items():
        with h5py.File(folder / f"{name}.mat", "w", userblock_size=512) as file:
            file.create_dataset("S", data=ids, **options).attrs["MATLAB_class"] = np.bytes_("uint8")
            group = file.create_group("GTcls")
            group.create_dataset("Segmentation", data=ids.astype(np.float64), **options)
        header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
        with (folder / f"{name}.mat").open("r+b") as file:
            file.write(header)


def read_mat(path: Path, folder: Path) -> None:
    """A map, or the field of a struct."""
    from fcn_jax.data.matlab import read_mat

    errors = []
    for variable in ("S", "GTcls/Segmentation"):
        try:
            read_mat(path, variable)
            return
        except (ValueError, OSError) as error:
            errors.append(error)
    raise errors[0]


# ---------------------------------------------------------------------- folders of a person


def write_pictures(folder: Path, seed: int = 0) -> None:
    """Three images of 8x8 pixels; JPEG so that they are no masks."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        Image.fromarray(noise(8, 8, 3, seed=seed + number)).save(folder / f"{number}.jpg")


def write_coco(folder: Path) -> None:
    """COCO: polygons, RLE, a crowd."""
    write_pictures(folder / "images")
    square = [1, 1, 6, 1, 6, 6, 1, 6]
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 3, "segmentation": [square], "area": 25},
        {"id": 2, "image_id": 0, "category_id": 7, "segmentation": [square, [0, 0, 3, 0, 3, 3]]},
        {
            "id": 3,
            "image_id": 1,
            "category_id": 7,
            "iscrowd": 1,
            "bbox": [0, 0, 8, 8],
            "segmentation": {"counts": [3, 10, 20, 31], "size": [8, 8]},
        },
        {
            "id": 4,
            "image_id": 2,
            "category_id": 3,
            "iscrowd": 0,
            "segmentation": {"counts": "3:d0e0", "size": [8, 8]},
        },
    ]
    content = {
        "info": {"year": 2020},
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 8, "height": 8}
            for number in range(3)
        ],
        "categories": [{"id": 3, "name": "plate"}, {"id": 7, "name": "table"}],
        "annotations": annotations,
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def write_labelme(folder: Path) -> None:
    """LabelMe: each shape."""
    write_pictures(folder)
    shapes = [
        {"label": "plate", "points": [[1, 1], [6, 1.5], [6, 6]], "shape_type": "polygon"},
        {"label": "table", "points": [[1, 1], [6, 6]], "shape_type": "rectangle", "flags": {}},
        {"label": "cup", "points": [[4, 4], [4, 6]], "shape_type": "circle", "group_id": None},
        {"label": "__ignore__", "points": [[0, 0], [3, 0], [3, 3]], "shape_type": "polygon"},
        {"label": "cup", "points": [[2, 2]], "shape_type": "point"},
        {"label": "cup", "points": [[2, 2], [5, 5], [6, 7]], "shape_type": "linestrip"},
    ]
    for number in range(3):
        content = {
            "version": "5.0",
            "flags": {},
            "shapes": shapes[number:] + shapes[:number],
            "imagePath": f"{number}.jpg",
            "imageData": None,
            "imageHeight": 8,
            "imageWidth": 8,
        }
        (folder / f"{number}.json").write_text(json.dumps(content))


def write_person(folder: Path, *, classes: str = "classes.txt", text: str = "a\nb\nc\n") -> None:
    """Images, masks and classes."""
    from PIL import Image

    write_pictures(folder / "images")
    (folder / "masks").mkdir()
    for number in range(3):
        Image.fromarray(noise(8, 8, high=3)).save(folder / "masks" / f"{number}.png")
    (folder / classes).write_text(text)


def write_roboflow(folder: Path) -> None:
    """Roboflow's export of masks."""
    from PIL import Image

    for seed, split in enumerate(("train", "valid")):
        write_pictures(folder / split, 10 * seed)
        for number in range(3):
            Image.fromarray(noise(8, 8, high=3)).save(folder / split / f"{number}_mask.png")
        (folder / split / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, a\n2, b\n")


def write_cvat(folder: Path) -> None:
    """CVAT's export of masks, which is VOC's."""
    from PIL import Image

    write_pictures(folder / "JPEGImages")
    (folder / "SegmentationClass").mkdir()
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    for number in range(3):
        mask = Image.fromarray(colors[noise(8, 8, high=3)])
        mask.save(folder / "SegmentationClass" / f"{number}.png")
    (folder / "ImageSets" / "Segmentation" / "default.txt").write_text("0\n1\n2\n")
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\na:128,0,0::\nb:0,128,0::\n"
    )


def write_supervisely(folder: Path) -> None:
    """Supervisely's export of masks."""
    from PIL import Image

    write_pictures(folder / "set" / "img")
    (folder / "set" / "masks_machine").mkdir()
    for number in range(3):
        mask = Image.fromarray(noise(8, 8, high=3))
        mask.save(folder / "set" / "masks_machine" / f"{number}.png")
    classes = [
        {"title": "a", "shape": "bitmap", "color": "#FF0000"},
        {"title": "b", "shape": "polygon", "color": "#00FF00"},
    ]
    colors = {"a": [1, 1, 1], "b": [2, 2, 2]}
    (folder / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    (folder / "obj_class_to_machine_color.json").write_text(json.dumps(colors))


def check_folder(path: Path, folder: Path) -> None:
    """The command ``check``, whose lines are the errors."""
    from fcn_jax.cli import check

    try:
        code = check.main([str(folder)])
    except SystemExit as left:
        code = left.code
    if code not in (0, 1, 2):
        raise AssertionError(f"exit code {code}")
    if code:
        raise ValueError(str(folder))


# ---------------------------------------------------------------------- data, configs, runs


def write_prepared(folder: Path) -> None:
    """A prepared data set of pictures."""
    from fcn_jax import data

    data.prepare("shapes", data_dir=folder, train=3, val=2, size=48)


def read_prepared(path: Path, folder: Path) -> None:
    """As training opens it, and an example of it."""
    from fcn_jax.data.source import Source

    version = next(parent for parent in path.parents if (parent / "metadata.json").exists())
    source = Source(version, "train")
    assert len(source) >= 0
    _ = source[0], source[-1]


def write_fields(folder: Path) -> None:
    """Arguments of the command ``train``, one of each field."""
    from fcn_jax import config

    lines = [
        f"--config.{name}={field.default!r}".replace("'", '"')
        for section in config.FIELDS.values()
        for name, field in section.items()
        if not isinstance(field.default, dict) and not isinstance(field.default, str)
    ]
    for index in range(0, len(lines), 3):
        (folder / f"arguments{index}.txt").write_text("\n".join(lines[index : index + 3]))
    more = ["--config.backbone=alexnet", "--config.inputs={'image': 'image+depth'}"]
    more += ["--config.stages=('fcn32s',)", "--config.loss_weights={'label': 2.0}"]
    for index, line in enumerate(more):
        (folder / f"text{index}.txt").write_text(line)


def read_fields(path: Path, folder: Path) -> None:
    """As the command reads them."""
    from fcn_jax import config
    from fcn_jax.cli import train

    fields = path.read_bytes().decode("utf-8", "replace").splitlines()
    configured = config.load_config("quickstart")
    train.set_fields(configured, fields)
    config.validate(configured)


def write_config_files(folder: Path) -> None:
    """Config files as people write them."""
    for name in ("quickstart", "folder", "fcn8s"):
        text = (campaign.ROOT / "configs" / f"{name}.py").read_text()
        (folder / f"{name}.py").write_text(text)


def read_config_file(path: Path, folder: Path) -> None:
    """As the command reads it."""
    from fcn_jax import config

    config.validate(config.load_config(str(path)))


def write_run(folder: Path) -> None:
    """A finished run."""
    import damage

    damage.finished_run(folder)


def read_run(path: Path, folder: Path) -> None:
    """For prediction and evaluation, and the config as training compares it."""
    from fcn_jax import config, runs

    configured = runs.read_config(folder / "run")
    config.validate(configured)
    stage = next((part for part in path.parts if part in ("fcn32s", "fcn16s", "fcn8s")), None)
    for which in ("best", "last"):
        runs.load_run(folder / "run", stage, which)


JSON_OF_RUN = "run/**/[!o]*"  # not arrays' files
KINDS |= {
    "images": Kind(write_images, read_image, share=40),
    "masks": Kind(write_masks, read_mask, share=36),
    "masks as .npy": Kind(write_npy, read_mask, share=16),
    "depth images": Kind(write_depth, read_depth, share=4),
    "class tables": Kind(write_class_tables, read_class_table, share=36),
    "weight files": Kind(write_weights, read_weights, share=36, one_line=False),
    ".mat up to version 7": Kind(write_mat, read_mat, 100, share=10),
    ".mat 7.3": Kind(write_mat73, read_mat, 250, share=10),
    "COCO": Kind(write_coco, check_folder, 100, 16, "*.json", False),
    "LabelMe": Kind(write_labelme, check_folder, 100, 16, "*.json", False),
    "Roboflow": Kind(write_roboflow, check_folder, 100, 4, "**/*.csv", False),
    "CVAT": Kind(write_cvat, check_folder, 100, 4, "**/*.txt", False),
    "Supervisely": Kind(write_supervisely, check_folder, 100, 4, "**/*.json", False),
    "own folder": Kind(write_person, check_folder, 100, 6, "**/*", False),
    "prepared data": Kind(write_prepared, read_prepared, 100, 12, "**/*.json"),
    "prepared records": Kind(write_prepared, read_prepared, 100, 4, "**/*.array_record*"),
    "config fields": Kind(write_fields, read_fields, 100, 8, one_line=False, named=False),
    "config files": Kind(write_config_files, read_config_file, 100, 6, one_line=False, named=False),
    "files of a run": Kind(write_run, read_run, 50, 24, JSON_OF_RUN),
}
ROUND = [name for name, kind in KINDS.items() for _ in range(kind.share)]

# ======================================================================== reading


def bounded_memory() -> None:
    """From now on this process may take so much more."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def judge(kind: Kind, path: Path, folder: Path) -> tuple[str, str]:
    """What reading a file gave, "read" or "refused", or a failure; and its message."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            kind.read(path, folder)
    except (ValueError, OSError) as error:
        message = str(error)
        if re.search(r"(?i)memory ?error|unable to allocate|cannot allocate", message):
            return "memory", message
        if kind.one_line and len(message.splitlines()) != 1:
            return "lines", message
        if kind.named and not names(message, path, folder):
            return "unnamed", message
        if len(message) > 5000 and kind.named:
            return "long", message[:300]
    except MemoryError:
        return "memory", traceback.format_exc()[-800:]
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    else:
        return ("traceback", out.getvalue()) if "Traceback" in out.getvalue() else ("read", "")
    text = out.getvalue()
    return ("traceback", text[-1500:]) if "Traceback" in text else ("refused", "")


def names(message: str, path: Path, folder: Path) -> bool:
    """Whether a message names a file, or a folder it lies in."""
    return str(folder) in message or any(part in message for part in path.relative_to(folder).parts)


@contextlib.contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file with another content for a while."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


class Shared:
    """What a child tells while it reads: the number it is at, and how many had which end."""

    VERDICTS = ("read", "refused")

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 24)

    def write(self, index: int, read: int, refused: int) -> None:
        """Called in the child."""
        self.map[:] = struct.pack("<3Q", index, read, refused)

    def values(self) -> tuple[int, int, int]:
        """Index, read, refused."""
        index, read, refused = struct.unpack("<3Q", self.map[:])
        return index, read, refused


def read_block(
    kind: Kind, seed: str, first: int, folder: Path, shared: Shared, failing: Path
) -> None:
    """Reads changed files from number ``first`` on; in a child."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bounded_memory()
    files = sorted(path for path in folder.glob(kind.files) if path.is_file())
    contents = [path.read_bytes() for path in files]
    _, read, refused = shared.values()
    for index in range(first, kind.block):
        shared.write(index, read, refused)
        rng = random.Random(f"{seed} {index}")
        path = rng.choice(files)
        others = rng.choices(contents, k=3)
        content = mutate.mutated(contents[files.index(path)], others, rng)
        (failing / "now").write_bytes(content)
        started = cpu_seconds(os.getpid())
        with changed(path, content):
            verdict, message = judge(kind, path, folder)
        if cpu_seconds(os.getpid()) - started > HANG:
            verdict, message = "hang", f"{cpu_seconds(os.getpid()) - started:.1f} s"
        read += verdict == "read"
        refused += verdict == "refused"
        if verdict not in Shared.VERDICTS:
            fail(failing, index, path, verdict, message)
    shared.write(kind.block, read, refused)


def fail(failing: Path, index: int, path: Path, verdict: str, message: str) -> None:
    """Keeps a file that failed, and how."""
    shutil.copy(failing / "now", failing / f"{index}_{path.name}")
    with (failing / "failures.jsonl").open("a") as file:
        file.write(json.dumps([index, path.name, verdict, message]) + "\n")


def cpu_seconds(pid: int) -> float:
    """Computed so far by a process and those it started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Runs the campaign."""
    torture = campaign.Campaign("mutations", __doc__, count=100_000)
    examples = torture.folder / "examples"
    for name, kind in KINDS.items():
        if torture.only not in (None, name):
            continue
        if not (examples / name).exists():
            shutil.rmtree(examples / "new", ignore_errors=True)
            (examples / "new").mkdir(parents=True)
            log = torture.folder / "examples.txt"
            pid = campaign.fork(lambda kind=kind: kind.make(examples / "new"), log)
            if campaign.wait(pid, 300) != 0:
                raise SystemExit(f"{name}: {log.read_text()[-2000:]}")
            (examples / "new").rename(examples / name)

    def trial(number: int, place: Path) -> dict[str, Any]:
        turn = random.Random(number // len(ROUND)).sample(ROUND, len(ROUND))[number % len(ROUND)]
        name = torture.only or turn
        kind, seed = KINDS[name], f"{torture.seed} {number}"
        folder, shared = place / "files", Shared()
        shutil.copytree(examples / name, folder)
        failing = torture.folder / "failing" / f"trial{number}"
        shutil.rmtree(failing, ignore_errors=True)
        failing.mkdir(parents=True)
        first = 0
        while first < kind.block:
            pid = campaign.fork(
                lambda first=first: read_block(kind, seed, first, folder, shared, failing),
                place / "output.txt",
            )
            verdict, message = watch(pid, shared, place)
            if verdict:  # the child is gone: the file it was at is the cause
                first = shared.values()[0]
                fail(failing, first, Path(name.replace("/", "_")), verdict, message)
                shutil.rmtree(folder)
                shutil.copytree(examples / name, folder)
            first = first + 1 if verdict else kind.block
        _, read, refused = shared.values()
        failures = []
        if (file := failing / "failures.jsonl").exists():
            for line in file.read_text().splitlines():
                index, path, verdict, message = json.loads(line)
                last = (message.strip().splitlines() or [""])[-1][:250]
                failures.append(f"{name}: {verdict}: {index} {path}: {last}")
        else:
            shutil.rmtree(failing)
        tally = {f"{name}: read": read, f"{name}: refused in one line": refused}
        verdicts = collections.Counter(text.split(": ")[1] for text in failures)
        tally |= {f"{name}: {verdict.upper()}": n for verdict, n in verdicts.items()}
        tally |= {"read or refused": read + refused}
        return {"count": kind.block, "tally": tally, "failures": failures}

    return torture.run(trial)


def watch(pid: int, shared: Shared, place: Path) -> tuple[str, str]:
    """Waits for a child; "", or what ended it where that was not its own end."""
    index, computed, since = -1, 0.0, time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            output = place / "output.txt"
            tail = output.read_text(errors="replace")[-1000:] if output.exists() else ""
            return ("", "") if code == 0 else ("crash", f"exit code {code} {tail}")
        if shared.values()[0] != index:
            index, since = shared.values()[0], time.monotonic()
            computed = cpu_seconds(pid)
        elif cpu_seconds(pid) - computed > 4 * HANG or time.monotonic() - since > STUCK:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hang", f"{time.monotonic() - since:.1f} s"
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
