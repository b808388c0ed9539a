"""Counts and scores over images of mixed sizes, beside loops over pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
import toy_backbones
from compilations import counted_compilations
from random_parameters import random_parameters
from scipy import ndimage

import fcn_jax
from fcn_jax.canvas import canvas_side, exactly
from fcn_jax.inference.evaluation import evaluate
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.fcn import create_model
from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.training import scoring

pytestmark = pytest.mark.usefixtures("plain_forms")

PLAIN = Preprocessing(channel_order="rgb", mean=(0.0, 0.0, 0.0))
PLAIN_IMAGES = Inputs.of(PLAIN)
SIZES = [(5, 7), (1, 1), (5, 7), (13, 4), (5, 7), (7, 5), (13, 4), (5, 7), (5, 7), (2, 9)]


class Brightest(nn.Module):
    """Predicts for each pixel the channel of the largest value; has no parameters."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return images


def make_examples(sizes=SIZES, classes: int = 3) -> list[dict]:
    rng = np.random.default_rng(3)
    labels = np.array([*range(classes), 255], np.uint8)
    return [
        {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": rng.choice(labels, size),
            "id": f"image{number}",
        }
        for number, size in enumerate(sizes)
    ]


def expected_counts(examples: list[dict]) -> np.ndarray:
    counts = np.zeros((3, 3), np.int64)
    for example in examples:
        for position in np.ndindex(*example["label"].shape):
            actual = example["label"][position]
            if actual != 255:
                counts[actual, np.argmax(example["image"][position])] += 1
    return counts


def evaluate_brightest(examples, *, progress=None, visit=None, **options) -> np.ndarray:
    predictor = Predictor(Brightest(), {}, PLAIN_IMAGES, {"label": tuple("rgb")}, **options)
    return evaluate(predictor, examples, progress=progress, visit=visit)["label"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_counts_are_those_of_a_loop_over_pixels(batch_size: int) -> None:
    examples = make_examples()
    counts = evaluate_brightest(iter(examples), batch_size=batch_size)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected_counts(examples))


def test_one_example_of_void_counts_nothing() -> None:
    (example,) = make_examples([(4, 6)])
    example["label"] = np.full((4, 6), 255, np.uint8)
    assert evaluate_brightest([example]).sum() == 0


@pytest.fixture(scope="module")
def network():
    model = create_model(
        "fcn16s", backbone=toy_backbones.plain, num_classes=3, width=1 / 4, fc_width=8
    )
    return model, {"params": random_parameters(model, seed=0)}


NETWORK_SIZES = [(33, 47), (40, 41), (1, 9), (33, 47), (34, 48)]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2},
        {"batch_size": 1, "canvas": exactly},
        {"batch_size": 3, "canvas": lambda side: 96},
        {"batch_size": 4, "scale": 0.5},
    ],
    ids=["default", "no canvas", "one canvas", "reduced"],
)
def test_a_network_scores_as_its_predictions_do(network, options):
    """Whatever the canvas and the batch: those of an image alone count."""
    model, variables = network
    examples = make_examples(NETWORK_SIZES)
    alone = Predictor(model, variables, PLAIN_IMAGES, **{**options, "canvas": exactly})
    expected = np.zeros((3, 3), np.int64)
    visited = {}
    counts = evaluate(
        Predictor(model, variables, PLAIN_IMAGES, **options),
        examples,
        visit=lambda example, labels: visited.update({example["id"]: labels["label"]}),
    )["label"]
    for example in examples:
        predicted = alone(example["image"])
        valid = example["label"] != 255
        np.add.at(expected, (example["label"][valid], predicted[valid]), 1)
        np.testing.assert_array_equal(visited[example["id"]], predicted)
    assert (expected.sum(axis=0) > 0).sum() > 1  # more than one class is predicted
    np.testing.assert_array_equal(counts, expected)


def test_a_canvas_is_compiled_once_for_all_its_sizes(network):
    model, variables = network
    sizes = np.random.default_rng(2).integers(33, 49, (25, 2)).tolist()
    examples = make_examples([*sizes, (7, 60)])

    def run(examples):
        with counted_compilations() as compiled:
            evaluate(Predictor(model, variables, PLAIN_IMAGES, batch_size=4), examples)
        return compiled

    run(examples[:1])  # compiles what does not depend on the canvas
    programs = run(examples)
    # 40 or 48 pixels a side, and 32 x 64 for the last image.
    assert programs.count("jit(_count_batch)") == len(programs) == 5
    assert run(examples[::-1]) == []


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_example_is_visited_once_with_its_labels(batch_size: int) -> None:
    examples = make_examples()
    visited, done = {}, []

    def visit(example, labels) -> None:
        assert example["id"] not in visited
        visited[example["id"]] = labels["label"]

    evaluate_brightest(examples, batch_size=batch_size, visit=visit, progress=done.append)
    assert done == list(range(1, len(examples) + 1))
    for example in examples:
        np.testing.assert_array_equal(visited[example["id"]], example["image"].argmax(axis=-1))


def test_mistakes_name_the_example() -> None:
    examples = make_examples([(4, 5), (4, 5)])
    examples[1]["label"] = examples[1]["label"][:3]
    with pytest.raises(ValueError, match="image1"):
        evaluate_brightest(examples)
    examples = make_examples([(4, 5), (4, 5)])
    examples[1]["label"][2, 2] = 3
    with pytest.raises(ValueError, match=r"image1.*\b3\b"):
        evaluate_brightest(examples)


def test_an_image_that_does_not_fit_the_canvas_is_named(network):
    examples = make_examples([(4, 5), (4, 50)])
    with pytest.raises(ValueError, match=r"image1: the image of 4x50 pixels does not fit .* 32x32"):
        evaluate(Predictor(*network, canvas=(32, 32)), examples)


def test_mistakes_of_the_whole() -> None:
    with pytest.raises(ValueError, match="no example"):
        evaluate_brightest([])
    with pytest.raises(ValueError, match=r"3 classes.* 4"):
        evaluate(Predictor(Brightest(), {}, heads={"label": tuple("rgba")}), make_examples())
    with pytest.raises(ValueError, match="needs heads"):
        evaluate(Predictor(Brightest(), {}), make_examples())


FOUR_DEVICES = """
import jax, json, numpy as np
from jax.sharding import Mesh
from fcn_jax import Predictor
from test_evaluation import PLAIN_IMAGES, Brightest, evaluate_brightest, make_examples
assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()), ("data",))
images = [example["image"] for example in make_examples()]
predictor = Predictor(Brightest(), {}, PLAIN_IMAGES, mesh=mesh)
for labels, image in zip(predictor(images), images):
    np.testing.assert_array_equal(labels, image.argmax(-1))
print(json.dumps([
    evaluate_brightest(make_examples(), batch_size=size, mesh=mesh).tolist() for size in (1, 6)
]))
"""


def test_four_devices_count_as_one() -> None:
    folder = os.path.dirname(__file__)
    path = os.pathsep.join([folder, os.path.dirname(folder)])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    output = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    for counts in json.loads(output):
        np.testing.assert_array_equal(counts, expected_counts(make_examples()))


# ======================================================================== other scores

SCALE_OF_LOSS = Inputs.of(Preprocessing(channel_order="rgb", mean=(0.0,) * 3, std=(64.0,) * 3))


def test_the_loss_is_that_of_each_valid_pixel():
    """Not a mean of means: batches and images count by their valid pixels."""
    examples = make_examples()
    examples[0]["label"][:] = 255
    losses = []
    for example in examples:
        logits = example["image"].astype(np.float64) / 64
        all_classes = np.log(np.exp(logits).sum(axis=-1))
        for place in np.argwhere(example["label"] != 255):
            place = tuple(place)
            losses.append(all_classes[place] - logits[place][example["label"][place]])
    for batch_size in (1, 3, 5):
        predictor = Predictor(
            Brightest(), {}, SCALE_OF_LOSS, {"label": tuple("rgb")}, batch_size=batch_size
        )
        metrics = fcn_jax.score(predictor, examples)["label"]
        assert metrics.loss == pytest.approx(np.mean(losses), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_scores_do_not_depend_on_batch_and_canvas(network, scale):
    """Each image's are those of its own prediction: the band is 3 pixels wide, and not 4."""
    model, variables = network
    examples = make_examples([(97, 131), (20, 33), (97, 131), (21, 40), (97, 131)])
    for example in examples:  # smooth enough for the network to have boundaries, too
        blobs = ndimage.gaussian_filter(example["image"].astype(np.float32), (5, 5, 0))
        example["image"] = (255 * (blobs > 127)).astype(np.uint8)
        example["label"][: len(example["label"]) // 2] = 1
    options = {"scale": scale, "heads": {"label": tuple("rgb")}}
    alone = Predictor(model, variables, PLAIN_IMAGES, canvas=exactly, **options)
    single = [fcn_jax.score_image(e["label"], alone(e["image"]), 3) for e in examples]
    results = [
        fcn_jax.score(
            Predictor(model, variables, PLAIN_IMAGES, batch_size=size, canvas=canvas, **options),
            examples,
        )["label"]
        for size, canvas in ((1, canvas_side), (3, canvas_side), (5, (160, 160)))
    ]
    of_four = fcn_jax.score_image(
        examples[0]["label"], alone(examples[0]["image"]), 3, boundary_width=4 / 163
    )
    assert not np.array_equal(of_four.boundary_iu, single[0].boundary_iu)
    for metrics in results:
        for name in ("iu", "boundary_iu", "boundary_f1"):
            np.testing.assert_array_equal(
                getattr(metrics.images, name), [getattr(each, name) for each in single]
            )
        assert metrics.overall() == {**results[0].overall(), "loss": metrics.loss}
        assert metrics.loss == pytest.approx(results[0].loss, rel=1e-5)
        iu = metrics.per_class_iu
        np.testing.assert_allclose(metrics.per_class_f1, 2 * iu / (1 + iu), rtol=1e-12)


def test_processes_score_together_what_one_scores(monkeypatch, unchecked_annotations):
    """Two processes, one after the other: each scores its part, and the sums are those of all."""
    examples = make_examples()
    classes = fcn_jax.classes.table_from_names("r, g, b")
    stage = types.SimpleNamespace(name="fcn8s", model=None)
    journal = types.SimpleNamespace(say=print, record=lambda *_: None, page=lambda: None)

    def predictor_of(*_) -> Predictor:
        return Predictor(Brightest(), {}, SCALE_OF_LOSS, {"label": classes})

    def score(index: int, count: int, combine) -> dict[str, float]:
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(scoring.devices, "sum_over_processes", combine)
        heads = {"label": classes}
        return scoring.score(
            stage,
            1,
            {},
            predictor_of=predictor_of,
            images=examples,
            heads=heads,
            samples=0,
            by_image=True,
            journal=journal,
        )

    def part(images, indices):
        return (images[index] for index in indices)

    monkeypatch.setattr(scoring.loader, "evaluation_examples", part)
    expected = score(0, 1, lambda tallies: tallies)
    assert {"loss", "mean_f1", "mean_boundary_iu", "boundary_f1/g"} < set(expected)
    for count in (2, len(examples) + 1):  # the last has nothing to score
        parts = []

        def give_away(tallies, parts=parts):
            parts.append(tallies)
            raise InterruptedError

        for index in range(count):
            with pytest.raises(InterruptedError):
                score(index, count, give_away)
        total = jax.tree.map(lambda *arrays: sum(arrays), *parts)
        assert score(0, count, lambda _, total=total: total) == pytest.approx(expected, rel=1e-6)


# ======================================================================== several inputs and heads


class Sums(nn.Module):
    """Two heads: the brightest channel of the image, and whether depth is below a metre."""

    @nn.compact
    def __call__(self, inputs: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        far = inputs["depth"] - np.log(1000.0)
        return {"color": inputs["image"], "near": jax.numpy.concatenate([far, -far], axis=-1)}


def test_every_head_is_counted_by_its_own_labels():
    rng = np.random.default_rng(0)
    examples = make_examples()
    for example in examples:
        size = example["label"].shape
        example["color"] = example.pop("label")
        example["depth"] = rng.integers(1, 2000, size).astype(np.uint16)
        example["near"] = rng.choice(np.array([0, 1, 255], np.uint8), size)
    inputs = Inputs.of(
        {
            "image": {"image": PLAIN},
            "depth": {"depth": Preprocessing("rgb", (0.0,), (1.0,), log=True)},
        }
    )
    visited: dict[str, dict[str, np.ndarray]] = {}
    heads = {"color": tuple("rgb"), "near": ("far", "near")}
    counts = evaluate(
        Predictor(Sums(), {}, inputs, heads, batch_size=2),
        examples,
        visit=lambda example, labels: visited.update({example["id"]: labels}),
    )
    expected = np.zeros((2, 2), np.int64)
    for example in examples:
        predicted = (example["depth"] < 1000).astype(np.uint8)
        np.testing.assert_array_equal(visited[example["id"]]["near"], predicted)
        for actual, guess in zip(example["near"].flat, predicted.flat, strict=True):
            if actual != 255:
                expected[actual, guess] += 1
        example["label"] = example["color"]
    np.testing.assert_array_equal(counts["near"], expected)
    np.testing.assert_array_equal(counts["color"], expected_counts(examples))


def test_a_missing_feature_is_named():
    inputs = Inputs.of({"image": {"image": PLAIN}, "hha": {"hha": PLAIN}})
    with pytest.raises(ValueError, match="image0: hha is missing; there are image, label, id"):
        evaluate(Predictor(Sums(), {}, inputs, {"label": tuple("abc")}), make_examples())
