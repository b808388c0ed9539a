"""Examples of a program's own as a source, and runs on them (with a loss and callbacks)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax import config as configs
from fcn_jax.classes import table_from_names
from fcn_jax.data import Examples, open_source
from fcn_jax.data.images import pixel_digest
from fcn_jax.inference import report
from fcn_jax.runs import load_run, read_config
from fcn_jax.training.run import train

TRUNK = f"{Path(__file__).parent / 'toy_backbones.py'}:plain"


def rows_of(number: int, seed: int = 0, classes: int = 3) -> list[dict]:
    """Examples of odd sizes, as arrays; every label is there."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(number):
        height, width = rng.integers(20, 40, 2)
        label = rng.integers(0, classes, (height, width), np.uint8)
        label[0, :classes] = range(classes)
        label[rng.random(label.shape) < 0.1] = 255
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        rows.append({"image": image, "label": label, "id": f"row{seed}_{i}"})
    return rows


# ======================================================================== rows


def test_a_list_of_examples_is_a_source():
    rows = rows_of(5)
    source = Examples(rows)
    assert source.ids == tuple(row["id"] for row in rows)
    assert source.digests == tuple(pixel_digest(row["image"]) for row in rows)
    assert source.sizes == tuple(row["label"].shape for row in rows)
    assert source.classes.names == ("class 0", "class 1", "class 2")
    assert "as many classes as its labels show" in source.notes[0]
    assert (source.modalities, source.channels) == (("image",), {"image": 3})
    for row, example in zip(rows, source, strict=True):
        np.testing.assert_array_equal(example["image"], row["image"])
        np.testing.assert_array_equal(example["label"], row["label"])
    counts = [np.bincount(row["label"].ravel(), minlength=256)[:3] for row in rows]
    np.testing.assert_array_equal(source.label_counts["label"], counts)
    kept = source.without({source.digests[1]})
    assert kept.ids == (*source.ids[:1], *source.ids[2:])
    assert kept[1]["id"] == source.ids[2]


def test_the_digests_are_those_of_a_prepared_copy(tmp_path):
    prepared = open_source("shapes", "val", data_dir=tmp_path, train=2, val=3, size=48)
    again = Examples(list(prepared), prepared.classes)
    for name in ("ids", "digests", "label_digests", "sizes"):
        assert getattr(again, name) == getattr(prepared, name)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.float32, bool])
def test_labels_of_any_type_and_void(dtype):
    (row,) = rows_of(1, classes=2)
    mask = row["label"].astype(dtype)
    if np.dtype(dtype).kind == "i":
        mask[row["label"] == 255] = -1
    if dtype is bool:
        row["label"] = row["label"] > 0
    source = Examples([{"image": row["image"], "label": mask}], {"label": ["ground", "tree"]})
    assert source.ids == ("0",)
    assert source[0]["label"].dtype == np.uint8
    np.testing.assert_array_equal(source[0]["label"], row["label"].astype(np.uint8))


def test_pillows_images_of_every_mode():
    """A grey photograph is no mask, though it has one band as well; palettes hold ids."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, (13, 17), np.uint8)
    grey = rng.integers(0, 256, (13, 17), np.uint8)
    mask = Image.fromarray(ids, "P")
    mask.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for mode in ("L", "RGB", "RGBA", "P"):
        photograph = Image.fromarray(grey).convert(mode)
        example = Examples([{"image": photograph, "label": mask}])[0]
        np.testing.assert_array_equal(example["image"], np.repeat(grey[..., None], 3, axis=2))
        np.testing.assert_array_equal(example["label"], ids)


def test_rows_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    rows = rows_of(3)
    columns = {
        "photo": [Image.fromarray(row["image"]) for row in rows],
        "mask": [Image.fromarray(row["label"]) for row in rows],
        "caption": ["a", "b", "c"],
    }
    table = datasets.Dataset.from_dict(columns)
    table = table.cast_column("photo", datasets.Image()).cast_column("mask", datasets.Image())
    source = Examples(
        table, ["sky", "road", "car"], columns={"image": "photo", "label": "mask"}, name="streets"
    )
    assert source.ids == ("0", "1", "2")
    for row, example in zip(rows, source, strict=True):
        np.testing.assert_array_equal(example["image"], row["image"])
        np.testing.assert_array_equal(example["label"], row["label"])


def test_several_label_maps_depth_and_bands():
    rng = np.random.default_rng(0)
    row = {
        "image": rng.random((9, 12, 4), np.float32),
        "depth": rng.integers(0, 9000, (9, 12), np.uint16),
        "sem": rng.integers(0, 4, (9, 12), np.uint8),
        "geo": rng.integers(0, 2, (9, 12), np.uint8),
        "camera": np.eye(3),  # no array of the image's size
        "tags": ["a"],
    }
    columns = {name: name for name in ("image", "depth", "sem", "geo")}
    geo = table_from_names("flat, upright")
    source = Examples([row], {"sem": list("abcd"), "geo": geo}, columns=columns)
    assert source.modalities == ("image", "depth")
    assert source.channels == {"image": 4, "depth": 1}
    assert source.dtypes == {"image": "float32", "depth": "uint16"}
    assert source.ranges["depth"] is None
    assert np.shape(source.ranges["image"]) == (4, 2)
    assert {name: table.names for name, table in source.label_maps.items()} == {
        "sem": ("a", "b", "c", "d"),
        "geo": ("flat", "upright"),
    }


class Drawn:
    """Rows that are cropped at random each time, as in many programs."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng()
        return {
            "image": rng.integers(0, 256, (20, 30, 3), np.uint8),
            "label": np.zeros((20, 30), np.uint8),
        }


GOOD = rows_of(1)[0]
SMALL = np.zeros((4, 5), np.uint8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "examples is empty"),
        ([(SMALL, SMALL)], r"examples\[0\] is a tuple; rows are dictionaries"),
        (
            [{"photo": GOOD["image"], "label": GOOD["label"]}],
            "has no image among photo, label; say",
        ),
        ([{"image": GOOD["image"]}], r"examples\[0\] has no label map among image"),
        ([GOOD, {"image": GOOD["image"]}], r"examples\[1\]: it has no label"),
        ([GOOD, {**GOOD, "label": SMALL}], r"examples\[1\]: row0_0: expected .* got label uint8"),
        ([{**GOOD, "label": GOOD["label"] + 0.5}], r"examples\[0\]: holds .*5, which is no class"),
        ([GOOD, GOOD], "2 rows of examples have the id 'row0_0'"),
        (
            [GOOD, {**GOOD, "image": GOOD["image"][..., :2]}],
            "has 2 bands of uint8, in the first row 3",
        ),
        ([{**GOOD, "image": GOOD["image"].transpose(2, 0, 1)}], r"\[0\]: .*"),
        (Drawn(), r"examples\[0\] is not what it was .* random changes to the config"),
    ],
)
def test_rows_that_are_no_examples_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        Examples(rows)


def test_classes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"rows\[0\]: label values 2 belong to no class"):
        Examples([GOOD], ["a", "b"], name="rows")
    with pytest.raises(ValueError, match="has no mask among image, label, id"):
        Examples([GOOD], {"mask": ["a"]})
    with pytest.raises(ValueError, match="label maps label, other: give classes by name"):
        Examples([{**GOOD, "other": GOOD["label"]}], ["a", "b", "c"])


# ======================================================================== runs on them


def tiny(**fields) -> configs.Config:
    config = configs.default_config()
    config.update(backbone=TRUNK, width=0.5, fc_width=8, stages=("fcn8s",), crop=(24, 24))
    config.update(batch_size=2, steps=(2,), learning_rate=(1e-3,), optimizer="adam", log_every=1)
    config.update(normalize_loss=True, samples=1, **fields)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on lists, and what its callback was told."""
    workdir, told = tmp_path_factory.mktemp("given") / "run", []
    source = train(
        tiny(),
        workdir,
        train_source=rows_of(4),
        eval_source=rows_of(2, seed=1),
        callbacks=[lambda stage, step, values: told.append((stage, step, dict(values)))],
    )
    return workdir, source, told


def test_a_run_on_lists_and_its_callback(trained):
    workdir, source, told = trained
    run = load_run(workdir, allow_code=True)
    assert run.trained_on == {pixel_digest(row["image"]) for row in rows_of(4)}
    assert run.heads["label"].names == ("class 0", "class 1", "class 2")
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [{"stage": s, "step": n, **values} for s, n, values in told] == records
    assert [n for _, n, values in told if "loss" in values] == [1, 2]
    assert "eval/mean_iu" in told[-1][2]
    results = report.evaluate_run(workdir, source, allow_code=True, pictures=1)
    assert results[0].tally.counts.sum() == sum(
        np.sum(r["label"] != 255) for r in rows_of(2, seed=1)
    )


def test_the_run_goes_on_with_the_same_images_only(trained):
    workdir, *_ = trained
    rows, val = rows_of(4), rows_of(2, seed=1)
    train(tiny(), workdir, train_source=rows, eval_source=val)
    renamed = [{**row, "id": f"other{i}"} for i, row in enumerate(rows)]
    train(tiny(), workdir, train_source=Examples(renamed), eval_source=val)
    other = [*rows[:3], rows_of(1, seed=7)[0]]
    with pytest.raises(
        ValueError, match=r"training images added 1 \(row7_0\), removed 1 \(row0_3\)"
    ):
        train(tiny(), workdir, train_source=other, eval_source=val)
    with pytest.raises(ValueError, match="are also in"):
        train(tiny(), workdir, train_source=rows, eval_source=rows[:1])


def test_a_given_source_is_not_looked_for_among_the_data_sets(trained):
    workdir, *_ = trained
    config = read_config(workdir)
    assert config.dataset == "given"
    with pytest.raises(ValueError, match=r"given to train\(…, train_source=…"):
        train(config, workdir)
    train(config, workdir, train_source=rows_of(4), eval_source=rows_of(2, seed=1))


def test_sources_that_do_not_belong_together(tmp_path):
    with pytest.raises(ValueError, match="give both train_source and eval_source, or neither"):
        train(tiny(), tmp_path / "run", train_source=rows_of(4))
    named = Examples(rows_of(4), ["a", "b", "c"])
    with pytest.raises(ValueError, match="same classes: of label the one has a, b, c, the other"):
        train(
            tiny(), tmp_path / "run", train_source=named, eval_source=Examples(rows_of(2, seed=1))
        )
    more = rows_of(2, seed=1, classes=5)
    with pytest.raises(ValueError, match=r"eval_source\[0\]: label values 3, 4 belong to no class"):
        train(tiny(), tmp_path / "run", train_source=rows_of(4), eval_source=more)
    assert not (tmp_path / "run").exists()


def doubled(logits, labels):
    """Twice the cross-entropy."""
    loss = fcn_jax.cross_entropy(logits, labels)
    return loss._replace(total=2 * loss.total)


def test_a_loss_of_ones_own_is_the_runs_for_good(trained, tmp_path):
    sources = {"train_source": rows_of(4), "eval_source": rows_of(2, seed=1)}
    train(tiny(), tmp_path / "own", loss=doubled, **sources)
    first = [
        json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for workdir in (tmp_path / "own", trained[0])
    ]
    assert first[0] == pytest.approx(2 * first[1], rel=1e-5)
    train(tiny(), tmp_path / "own", loss=doubled, **sources)
    told = re.escape("loss: 'own: doubled")
    with pytest.raises(ValueError, match=told):
        train(tiny(), tmp_path / "own", **sources)
    with pytest.raises(ValueError, match=told):
        train(tiny(), tmp_path / "own", loss=lambda *given: doubled(*given), **sources)
    again = read_config(tmp_path / "own")
    assert again.loss.startswith("own: doubled")
    train(again, tmp_path / "own", loss=doubled, **sources)
    with pytest.raises(ValueError, match=r"config\.label_smoothing does not count with a loss of"):
        train(tiny(label_smoothing=0.1), tmp_path / "other", loss=doubled, **sources)


def test_class_weights_of_given_images(tmp_path):
    rows, val = rows_of(4), rows_of(2, seed=1)
    train(tiny(class_weights=("inverse",)), tmp_path / "run", train_source=rows, eval_source=val)
