"""The report folder and ``fcn-jax eval``, on a run of tiny networks with random parameters."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import optax
import pytest
from PIL import Image
from random_parameters import random_parameters
from rich.console import Console

from fcn_jax import config as configs
from fcn_jax import data
from fcn_jax.checkpoints import StageCheckpoints
from fcn_jax.classes import ClassRow, ClassTable
from fcn_jax.cli import eval as cli_eval
from fcn_jax.data import Source
from fcn_jax.devices import data_mesh
from fcn_jax.inference import report
from fcn_jax.inference.evaluation import score
from fcn_jax.inference.metrics import BY_CLASS, compute_metrics, score_image
from fcn_jax.inference.predictor import load
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.ops import bilinear_kernel
from fcn_jax.runs import build_model
from fcn_jax.training.step import create_state

pytestmark = pytest.mark.usefixtures("plain_forms")

CLASSES = ClassTable(
    (
        ClassRow("ground", (90, 90, 90)),
        ClassRow("[odd] name", (250, 0, 0)),
        ClassRow("void", (0, 0, 0), ignored=True),
        ClassRow("never, seen", (0, 0, 250)),
    )
)
STAGES = ("fcn32s", "fcn8s")
SIZES = [(21, 33), (17, 30), (21, 33)]


class FakeSource(Source):
    """Images of noise and labels of the first two classes; ids that make poor file names."""

    split, path = "val", Path("nowhere")
    # Properties of its own class are read anew of what `without` gives.
    ids, digests = Source.ids, Source.digests
    label_digests, sizes = Source.label_digests, Source.sizes

    def __init__(self) -> None:
        self._parts, self._kept = [("val", range(3))], None
        self.label_maps = {"label": CLASSES}
        self.ranges = {"image": None}
        self.label_counts = {}

    def _column(self, name: str) -> np.ndarray:
        """What a prepared copy has in files."""
        columns = {
            "ids": np.array([b"left/1", b"left_1", b"right: 2"]),
            "digests": np.array([b"a", b"b", b"c"]),
            "label_digests": np.array([b"a", b"b", b"c"]),
            "sizes": np.array(SIZES),
        }
        return columns[name] if self._kept is None else columns[name][self._kept]

    def __getitem__(self, index: SupportsIndex) -> dict:
        number = index.__index__()
        seed, size = FakeSource().ids.index(self.ids[number]), self.sizes[number]
        rng = np.random.default_rng(seed)
        return {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": rng.choice(np.array([0, 1, 255], np.uint8), size),
            "id": self.ids[number],
        }

    def __repr__(self) -> str:
        return "FakeSource()"


def make_workdir(folder: Path, stages: tuple[str, ...]) -> Path:
    config = configs.default_config()
    config.stages, config.width, config.fc_width, config.steps = STAGES, 0.05, 8, (3,)
    config.backbone, config.padding, config.eval_batch_size = "vgg11", "same", 2
    (folder / "config.json").write_text(json.dumps(configs.to_plain(config)))
    fields = {
        "config": configs.to_plain(config),
        "heads": {"label": CLASSES.to_dict()},
        "inputs": Inputs.of(CAFFE).to_dict(),
    }
    for number, stage in enumerate(stages):
        model = build_model(config, stage, {"label": CLASSES}, Inputs.of(CAFFE))
        params = random_parameters(model, seed=number)
        for layer in params.values():
            if layer["kernel"].shape[2:] == (CLASSES.num_classes,) * 2:  # mixes no classes, then
                layer["kernel"] = bilinear_kernel(len(layer["kernel"]), CLASSES.num_classes)
        # the last is predicted nowhere; with no label of it, it is absent altogether.
        params["score_fr"]["bias"][2] = -1e6
        state = create_state(params, optax.sgd(0.1), data_mesh())
        with StageCheckpoints(folder, stage) as checkpoints:
            checkpoints.save(0, state, {}, fields, {"mean_iu": 0.5})
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return make_workdir(tmp_path_factory.mktemp("run"), STAGES)


@pytest.fixture(scope="module")
def evaluated(workdir) -> tuple[Path, list[report.StageResult], str]:
    text = io.StringIO()
    console = Console(file=text, width=100)
    results = report.evaluate_run(workdir, FakeSource(), console=console, pictures=2)
    return workdir / "report", results, text.getvalue()


def test_counts_are_those_of_the_predictions(workdir, evaluated) -> None:
    _, results, _ = evaluated
    assert [result.stage for result in results] == list(STAGES)
    source = FakeSource()
    for result in results:
        predictor = load(workdir, stage=result.stage)
        expected = np.zeros((3, 3), np.int64)
        for index in range(len(source)):
            example = source[index]
            labels = predictor(example["image"])
            valid = example["label"] != 255
            np.add.at(expected, (example["label"][valid], labels[valid]), 1)
            if index in result.labels:
                np.testing.assert_array_equal(result.labels[index], labels)
        np.testing.assert_array_equal(result.tally.counts, expected)
        assert sorted(result.labels) == [0, 2]  # spread from the first to the last


def test_files_hold_the_scores(evaluated) -> None:
    folder, results, _ = evaluated
    content = json.loads((folder / "scores.json").read_text())
    assert content["data"] == "FakeSource()"
    for result in results:
        stage, metrics = content["stages"][result.stage], compute_metrics(result.tally.counts)
        for field, value in metrics.overall().items():
            assert stage[field] == value
        assert stage["absent"] == ["never, seen"]
        nothing = stage["classes"]["never, seen"]
        assert (nothing.pop("pixels"), nothing.pop("images")) == (0, 0)
        assert nothing.pop("image_iu_distribution").pop("images") == 0
        assert set(nothing) == set(BY_CLASS)
        assert set(nothing.values()) == {None}
        for name, values in metrics.by_class().items():
            assert stage["classes"]["ground"][name] == values[0]
        assert stage["classes"]["ground"]["pixels"] == result.tally.counts[0].sum()
        with (folder / f"confusion_{result.stage}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header[1:] == [row[0] for row in rows] == list(CLASSES.names)
        np.testing.assert_array_equal(
            [[int(v) for v in row[1:]] for row in rows], result.tally.counts
        )
        with Image.open(folder / f"confusion_{result.stage}.png") as image:
            assert min(image.size) > 300
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["class"]) for row in rows] == [
        (stage, name) for stage in STAGES for name in CLASSES.names
    ]
    assert float(rows[1]["iu"]) == compute_metrics(results[0].tally.counts).per_class_iu[1]
    assert rows[2]["iu"] == ""
    assert content["boundary_width"] == 0.02


def test_scores_of_single_images_and_the_loss(workdir, evaluated) -> None:
    """From the predictions of each image, in the files and on the terminal."""
    folder, results, text = evaluated
    source = FakeSource()
    for result in results:
        predictor, losses, rows = load(workdir, stage=result.stage), [], []
        for index in range(len(source)):
            image, label = source[index]["image"], source[index]["label"]
            valid = label != 255
            logits = predictor.logits(image)[valid].astype(np.float64)
            true = logits[np.arange(valid.sum()), label[valid]]
            losses += (np.logaddexp.reduce(logits, axis=-1) - true).tolist()
            rows.append(score_image(label, predictor(image), 3))
        iu, boundary_iu, boundary_f1 = (np.array(values) for values in zip(*rows, strict=True))
        of_images = np.nanmean(iu, axis=1)

        stage = json.loads((folder / "scores.json").read_text())["stages"][result.stage]
        assert stage["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert stage["mean_image_iu"] == pytest.approx(of_images.mean())
        spread = stage["image_iu"]
        assert spread.pop("lowest") == [source.ids[i] for i in np.argsort(of_images)]
        assert spread == pytest.approx(
            {"images": 3, "mean": of_images.mean()}
            | {f"{q}%": np.percentile(of_images, q) for q in (5, 25, 50, 75, 95)}
            | {"min": of_images.min(), "max": of_images.max()}
        )
        of_ground = stage["classes"]["ground"]
        assert of_ground["images"] == 3
        assert of_ground["boundary_iu"] == pytest.approx(boundary_iu[:, 0].mean())
        assert of_ground["boundary_f1"] == pytest.approx(boundary_f1[:, 0].mean())
        assert of_ground["image_iu_distribution"]["50%"] == pytest.approx(np.median(iu[:, 0]))
        assert stage["mean_boundary_iu"] == pytest.approx(boundary_iu[:, :2].mean())
        with (folder / f"images_{result.stage}.csv").open(newline="") as file:
            header, *lines = csv.reader(file)
        assert header == ["image", "mean IU", *CLASSES.names]
        assert [line[0] for line in lines] == list(source.ids)
        np.testing.assert_allclose([float(line[1]) for line in lines], of_images)
        assert [line[4] for line in lines] == [""] * 3
        for value in (stage["mean_boundary_f1"], spread["25%"], stage["loss"]):
            assert f"{value:.4f}" in text
    assert "boundaries: 2 % of the diagonal" in text
    assert f"fcn8s: images of the lowest IU: {source.ids[np.argmin(of_images)]}" in text


def test_pictures_have_names_of_their_own(evaluated, tmp_path) -> None:
    folder, results, _ = evaluated
    assert {path.name for path in (folder / "pictures").iterdir()} == {"left_1.png", "right_2.png"}
    everything = {index: np.zeros(size, np.uint8) for index, size in enumerate(SIZES)}
    result = report.StageResult("fcn8s", "label", CLASSES, 1, results[0].tally, everything)
    report.write([result], FakeSource(), tmp_path)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"left_1.png", "left_1_1.png", "right_2.png"}


def test_the_terminal_shows_metrics_and_classes(evaluated) -> None:
    _, results, text = evaluated
    for result in results:
        for field in report.METRICS:
            assert f"{getattr(result.metrics, field):.4f}" in text
        assert f"{result.metrics.per_class_iu[1]:.4f}" in text
    assert "[odd] name" in text
    assert "left out of the means: never, seen" in text


def test_an_earlier_report_is_replaced_and_other_files_kept(evaluated, tmp_path) -> None:
    _, results, _ = evaluated
    report.write(results, FakeSource(), tmp_path)
    (tmp_path / "pictures" / "mine.png").touch()
    report.write(
        [report.StageResult("fcn8s", "label", CLASSES, 1, results[1].tally, {})],
        FakeSource(),
        tmp_path,
    )
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "index.html",
        "scores.json",
        "per_class.csv",
        "confusion_fcn8s.csv",
        "confusion_fcn8s.png",
        "images_fcn8s.csv",
        "pictures/mine.png",
    }


def test_an_earlier_report_stays_where_the_new_one_fails(evaluated, tmp_path, monkeypatch) -> None:
    _, results, _ = evaluated
    report.write(results, FakeSource(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(report.drawing, "side_by_side", full)  # the last but scores.json
    with pytest.raises(OSError, match="No space"):
        report.write(results[1:], FakeSource(), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("trained", "limit", "scored", "counts"),
    [
        ("", 0, ["left/1", "left_1", "right: 2"], (3, 0, 3, 0)),
        ("ax", 0, ["left_1", "right: 2"], (3, 1, 2, 0)),
        ("ab", 1, ["right: 2"], (3, 2, 1, 0)),
        ("abc", 0, None, None),
        ("ab+", 0, ["left/1", "left_1", "right: 2"], (3, 0, 3, 2)),
        ("b+", 1, ["left/1"], (3, 0, 1, 0)),
    ],
)
def test_images_that_were_trained_on_do_not_count(
    workdir, tmp_path, monkeypatch, trained, limit, scored, counts
) -> None:
    """Images of the digests a, b and c; + asks for them all the same."""
    monkeypatch.setattr(report, "trained_on", lambda run: frozenset(trained))
    text = io.StringIO()

    def evaluate() -> list[report.StageResult]:
        return report.evaluate_run(
            workdir,
            FakeSource(),
            stages=["fcn32s"],
            output=tmp_path,
            limit=limit,
            include_training_images="+" in trained,
            console=Console(file=text, width=1000),
        )

    if counts is None:
        with pytest.raises(ValueError, match=r"trained on 3 \(left/1, left_1, right: 2\), so that"):
            evaluate()
        assert not list(tmp_path.iterdir())
        return
    (result,) = evaluate()
    keys = ("split", "left_out", "scored", "trained_on")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["images"] == dict(zip(keys, counts, strict=True))
    source = FakeSource()
    expected = {name: source[source.ids.index(name)]["label"] for name in scored}
    assert result.tally.counts.sum() == sum((label != 255).sum() for label in expected.values())
    assert len(result.labels) == len(scored)
    told = text.getvalue()
    assert ("are left out of the scores" in told) == (counts[1] > 0)
    assert ("scores include images that were trained on" in told) == (counts[3] > 0)


def test_other_classes_are_refused(workdir, tmp_path) -> None:
    source = FakeSource()
    source.label_maps = {
        "label": ClassTable((ClassRow("cat", (1, 1, 1)), ClassRow("dog", (2, 2, 2))))
    }
    with pytest.raises(ValueError, match=r"trained on the 3 classes ground.*2 classes cat"):
        report.evaluate_run(workdir, source, output=tmp_path / "new", console=Console())
    assert not (tmp_path / "new").exists()  # nothing is left of a report that was not made


def test_a_place_that_is_no_folder_is_refused_before_scoring(
    workdir, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(report, "tally", None)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        report.evaluate_run(workdir, FakeSource(), output=tmp_path / "file" / "report")


def test_many_classes_are_plotted(tmp_path) -> None:
    classes = ClassTable(tuple(ClassRow(f"class {i}", (i, i, i)) for i in range(150)))
    report.draw_confusion(tmp_path / "c.png", np.eye(150, dtype=np.int64) * 7, classes)
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 5000


# ======================================================================== the command


@pytest.fixture
def eval_main(monkeypatch):
    def open_source(name: str, split: str, **options) -> FakeSource:
        if split != "val":
            raise ValueError(f"{name} has no split '{split}'")
        return FakeSource()

    monkeypatch.setattr(data, "open_source", open_source)
    return cli_eval.main


def test_eval_scores_one_stage(eval_main, workdir, tmp_path, capsys) -> None:
    arguments = [f"--workdir={workdir}", "--stage=fcn8s", "--limit=1", "--pictures=0"]
    assert eval_main([*arguments, f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["test_time_augmentation"] is None
    assert not content["averaged_parameters"]
    assert list(content["stages"]) == ["fcn8s"]
    assert not (tmp_path / "pictures").exists()
    assert "mean IU" in capsys.readouterr().out


def test_scores_say_what_was_averaged(eval_main, workdir, tmp_path, capsys) -> None:
    arguments = [f"--workdir={workdir}", "--stage=fcn8s", "--limit=1", "--pictures=0"]
    arguments += [f"--output={tmp_path}", "--flip", "--scales=1,0.5", "--boundary_width=0.1"]
    assert eval_main(arguments) == 0
    content = json.loads((tmp_path / "scores.json").read_text())
    views = {"flip": True, "scales": [1.0, 0.5], "averaged": "probabilities"}
    assert content["test_time_augmentation"] == views
    assert content["boundary_width"] == 0.1
    assert "mean of the probabilities of 4 views" in capsys.readouterr().out
    predictor = load(workdir, stage="fcn8s", flip=True, scales=(1.0, 0.5))
    example = FakeSource()[0]
    metrics = score(predictor, [example], boundary_width=0.1)["label"]
    for name, value in metrics.overall().items():
        assert content["stages"]["fcn8s"][name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=WORKDIR", "--scales=1,-1"], "scales must be different positive factors"),
        (["--workdir=nowhere"], "nowhere is no folder of a training run"),
        (["--workdir=WORKDIR", "--stage=fcn16s"], "no checkpoint of 'fcn16s'; it has fcn32s, fcn"),
        (["--workdir=WORKDIR", "--split=tset"], "no split 'tset'"),
    ],
)
def test_eval_says_what_is_wrong(eval_main, workdir, capsys, arguments, message) -> None:
    assert eval_main([text.replace("WORKDIR", str(workdir)) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_eval_of_a_run_without_checkpoints(eval_main, tmp_path, capsys) -> None:
    make_workdir(tmp_path, ())
    assert eval_main([f"--workdir={tmp_path}"]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--workdir=x", "--pictres=3"], ["--workdir=x", "--limit=-1"], []]
)
def test_wrong_flags_end_with_code_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli_eval.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 2  # the usage and the error
