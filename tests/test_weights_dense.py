"""Dense layers as convolutions and back."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.weights import Weights, convolutionalize, load, save, to_dense


def network(order: str, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """fc6 over a map of 2x3 cells and 4 channels, and two more dense layers."""
    rng = np.random.default_rng(seed)
    sizes = {"fc6": (24, 5), "fc7": (5, 6), "fc8": (6, 3)}
    params = {
        layer: {"kernel": rng.normal(size=size), "bias": rng.normal(size=size[1])}
        for layer, size in sizes.items()
    }
    params["conv1"] = {"kernel": rng.normal(size=(1, 1, 3, 4)), "bias": rng.normal(size=4)}
    return params


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


@pytest.mark.parametrize("order", ["chw", "hwc"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
def test_the_convolution_at_each_position_is_the_dense_network_on_the_crop(order, shape):
    params = network(order)
    convolutions = convolutionalize(params, {"fc6": shape}, order)
    assert convolutions["fc6"]["kernel"].shape == (2, 3, 4, 5)
    assert convolutions["fc7"]["kernel"].shape == (1, 1, 5, 6)

    maps = np.random.default_rng(1).normal(size=(1, 5, 7, 4))
    out = maps
    for layer in ("fc6", "fc7", "fc8"):
        out = (
            convolve(out, convolutions[layer]["kernel"])
            + convolutions[layer]["bias"][None, None, None]
        )
    assert out.shape == (1, 4, 5, 3)
    for row in range(4):
        for column in range(5):
            crop = maps[0, row : row + 2, column : column + 3]
            x = crop.transpose(2, 0, 1).reshape(-1) if order == "chw" else crop.reshape(-1)
            for layer in ("fc6", "fc7", "fc8"):
                x = x @ params[layer]["kernel"] + params[layer]["bias"]
            np.testing.assert_allclose(out[0, row, column], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["chw", "hwc"])
@pytest.mark.parametrize("flat", [False, True])
def test_back_exactly(order, flat):
    params = network(order)
    if flat:
        params = {f"{layer}/{n}": value for layer, a in params.items() for n, value in a.items()}
    back = to_dense(convolutionalize(params, {"fc6": (2, 3)}, order), order=order)
    assert list(back) == list(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))
    only = to_dense(convolutionalize(params, {"fc6": (2, 3)}, order), ["fc7", "fc8"], order)
    kernel = only["fc6/kernel"] if flat else only["fc6"]["kernel"]
    assert kernel.shape == (2, 3, 4, 5)


def test_weights_keep_their_origin():
    weights = Weights({"fc6/kernel": np.zeros((24, 5))}, None, "a kind", ["something"])
    new = convolutionalize(weights, {"fc6": (2, 3)})
    assert (new.kind, new.skipped) == ("a kind", ("something",))
    assert weights["fc6/kernel"].shape == (24, 5)


def test_torchs_dense_layer(tmp_path):
    """The order in which PyTorch itself flattens, through a file."""
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(24, 5)
    maps = torch.randn(2, 4, 2, 3)
    truth = linear(maps.flatten(1)).detach().numpy()
    kernel = linear.weight.detach().numpy().T
    convolution = convolutionalize({"fc6": {"kernel": kernel}}, {"fc6": (2, 3)})["fc6"]["kernel"]
    out = convolve(maps.permute(0, 2, 3, 1).numpy(), convolution)[:, 0, 0]
    np.testing.assert_allclose(out + linear.bias.detach().numpy()[None], truth, atol=1e-5)


def test_all_mistakes_in_one_message():
    shapes = {"fc6": (2, 5), "fc7": (1, 1, 6), "conv1": (1, 1), "fc9": (1, 1)}
    with pytest.raises(ValueError, match="dense and convolution kernels") as caught:
        convolutionalize(network("chw"), shapes)
    for part in (
        "fc6 is (24, 5), which no map (2, 5) gives",
        "fc7 is (5, 6), which no map (1, 1, 6) gives",
        "conv1 has no dense kernel",
        "fc9 has no dense kernel; those with one are fc6, fc7, fc8",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"fc6 has no kernel of a convolution\n.*nothing has no"):
        to_dense(network("chw"), ["fc6", "nothing"])
    with pytest.raises(ValueError, match=r"order must be chw .* got 'whc'"):
        inspect.unwrap(convolutionalize)(network("chw"), {}, "whc")  # without its checks of types


def test_through_a_file_and_back(tmp_path):
    """Dense kernels are saved as such."""
    params = {
        layer: {name: np.asarray(value, np.float32) for name, value in arrays.items()}
        for layer, arrays in network("chw").items()
    }
    save(tmp_path / "a.npz", params)
    assert load(tmp_path / "a.npz")["fc6/kernel"].shape == (24, 5)
