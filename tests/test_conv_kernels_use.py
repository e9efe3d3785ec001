"""Convolutions on kernels: soundness, workspaces, the relatives that run on them, the choice and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal
from kernel_check import assert_sound, assert_two_runs_equal, on

import gpucnn
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import ops
from gpucnn.launch import simulator
from gpucnn.ops import conv_implicit_gemm

algorithms = pytest.mark.parametrize("algorithm", ["implicit_gemm", "im2col"])


def passes(x, weight, bias, gy, shape, algorithm):
    """(y, gx, gw, gb)"""
    return (
        ops.conv2d_forward(x, weight, bias, shape, algorithm),
        ops.conv2d_backward_input(gy, weight, shape, algorithm),
        ops.conv2d_backward_weight(x, gy, shape, algorithm),
        ops.conv2d_backward_bias(gy),
    )


@algorithms
def test_two_schedules_give_the_same_bits(algorithm, device, rng):
    shape = ops.conv_shape((3, 70, 9, 8), (20, 70, 3, 3), 2, 1)
    arrays = [rng.standard_normal(size).astype(np.float32) for size in (shape.x, shape.weight, (20,), shape.y)]
    moved = on(device, *arrays)
    assert_two_runs_equal(lambda: passes(*moved, shape, algorithm), device)


@algorithms
def test_kernels_are_sound(algorithm, device, rng):
    """More steps than the stages of shared memory; tails of rows, columns and terms; splits; strides with phases."""
    shape = ops.conv_shape((2, 5, 6, 7), (6, 5, 3, 3), 2, 1)
    arrays = [rng.standard_normal(size).astype(np.float32) for size in (shape.x, shape.weight, (6,), shape.y)]
    moved = on(device, *arrays)
    assert_sound(lambda: passes(*moved, shape, algorithm), device)


def test_large_tiles_and_chunks_are_sound(device, rng, monkeypatch):
    large = conv_implicit_gemm.TILES[0]
    monkeypatch.setattr(conv_implicit_gemm, "choose_tile", lambda *arguments: (large, 1))
    shape = ops.conv_shape((1, 129, 12, 11), (9, 129, 3, 3), 1, 1)
    x, weight, gy = on(
        device, *(rng.standard_normal(size).astype(np.float32) for size in (shape.x, shape.weight, shape.y))
    )
    assert_sound(lambda: ops.conv2d_forward(x, weight, None, shape, "implicit_gemm"), device)


def test_counters_of_implicit_gemm(device, monkeypatch):
    """A barrier a step, exact work, float4s of shared memory in 2 passes, few more sectors of x than there must be."""
    if device != "sim":
        pytest.skip("counters are the simulator's")
    tiles = {tile.name: tile for tile in conv_implicit_gemm.TILES}
    monkeypatch.setattr(conv_implicit_gemm, "choose_tile", lambda *arguments: (tiles["128x128"], 1))
    shape = ops.conv_shape((1, 64, 6, 66), (128, 64, 3, 3))  # 2 tiles of pixels, 36 steps
    x, weight, gy = on(device, *(np.ones(size, np.float32) for size in (shape.x, shape.weight, shape.y)))
    with simulator.profiling() as launches:
        ops.conv2d_forward(x, weight, None, shape, "implicit_gemm")
        ops.conv2d_backward_weight(x, gy, shape, "implicit_gemm")
    profiles = dict(launches)
    forward, gradient = (profiles[f"conv2d_{name}_128x128"] for name in ("forward", "backward_weight_channels"))
    assert forward.flops == 2 * shape.multiply_adds
    assert (forward.barriers, gradient.barriers) == (2 * (36 + 1), 5 * (16 + 1))
    for found in (forward, gradient):
        shared = [c for c in found.lines.values() if c.space == "shared" and c.requests > 100]  # not the tables
        floats4 = [c for c in shared if not c.writes and c.least == 4 * c.requests]
        assert floats4 and all(c.units == 2 * c.requests for c in floats4)
        assert all(c.units == c.least for c in shared if c.writes)
    images = [c for c in forward.lines.values() if c.space == "global" and not c.writes and c.least == 4 * c.requests]
    assert sum(c.requests for c in images) == 2 * 64 * 9 * 4
    # 32 neighbouring pixels are 4 sectors where they begin with one, else 5; rows of 66 begin anywhere.
    assert sum(c.units for c in images) <= 4.875 * sum(c.requests for c in images)


def test_workspaces_are_what_is_allocated(device, monkeypatch):
    """Beyond the result, a pass allocates the bytes that the table names."""
    allocated = []
    empty = devices.empty

    def counted(*arguments, **options):
        array = empty(*arguments, **options)
        allocated.append(array.nbytes)
        return array

    shape = ops.conv_shape((2, 300, 6, 6), (300, 300, 3, 3), padding=1)  # long sums of few outputs are split
    moved = on(device, *(np.ones(size, np.float32) for size in (shape.x, shape.weight, (300,), shape.y)))
    monkeypatch.setattr(devices, "empty", counted)
    runs = {
        "conv2d_forward": (ops.conv2d_forward, (*moved[:3], shape)),
        "conv2d_backward_input": (ops.conv2d_backward_input, (moved[3], moved[1], shape)),
        "conv2d_backward_weight": (ops.conv2d_backward_weight, (moved[0], moved[3], shape)),
    }
    for operation, (run, arguments) in runs.items():
        for algorithm in ("implicit_gemm", "im2col"):
            allocated.clear()
            result = run(*arguments, algorithm)
            entry = ops.KERNEL_ALGORITHMS[operation][algorithm]
            want = entry.workspace_bytes(shape, np.dtype(np.float32))
            assert allocated[0] == result.nbytes
            # im2col's products may split their terms as well, in workspaces of their own.
            own = allocated[1:] if algorithm == "implicit_gemm" else allocated[1:2]
            if (algorithm, operation) != ("im2col", "conv2d_backward_weight"):
                assert sum(own) == want, (operation, algorithm)
                assert want > 0 or operation == "conv2d_backward_weight"


def gradients(function, arrays, device, **options):
    """The result of a function of Tensors and the gradients of its inputs, brought back to the CPU."""
    leaves = [gpucnn.tensor(array, device=device, requires_grad=True) for array in arrays]
    y = function(*leaves, **options)
    gy = np.random.default_rng(5).integers(-3, 4, y.shape).astype(np.float32)
    y.backward(devices.move(gy, device))
    return [devices.to_numpy(a) for a in (y.data, *(leaf.grad.data for leaf in leaves))]


RELATIVES = {
    "conv1d": (F.conv1d, ((2, 4, 15), (6, 2, 3), (6,)), {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d": (F.conv2d, ((2, 4, 9, 7), (6, 2, 3, 3), (6,)), {"padding": 1, "groups": 2}),
    "conv3d": (F.conv3d, ((2, 3, 6, 7, 5), (4, 3, 3, 2, 3), (4,)), {"stride": (2, 1, 1), "padding": 1}),
    "conv_transpose2d": (
        F.conv_transpose2d,
        ((2, 6, 5, 4), (6, 2, 3, 3), (4,)),
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
    ),
}


@algorithms
@pytest.mark.parametrize("name", RELATIVES)
def test_relatives(name, algorithm, device, rng):
    function, shapes, options = RELATIVES[name]
    arrays = [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]
    got = gradients(function, arrays, device, **options, algorithm=algorithm)
    for result, want in zip(got, gradients(function, arrays, "cpu", **options), strict=True):
        assert_equal(result, want)


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_conv2d_relu_is_both(where, device, rng):
    where = device if where == "device" else where
    arrays = [rng.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 4, 9, 7), (6, 2, 3, 3), (6,))]
    options = {"stride": 2, "padding": 1, "groups": 2}
    got = gradients(F.conv2d_relu, arrays, where, **options)
    want = gradients(lambda *leaves, **rest: F.relu(F.conv2d(*leaves, **rest)), arrays, "cpu", **options)
    assert (want[0] == 0).any() and (want[0] > 0).any()
    for one, other in zip(got, want, strict=True):
        assert_equal(one, other)


def test_the_choice_and_refusals(device):
    shape = ops.conv_shape((8, 64, 56, 56), (128, 64, 3, 3), stride=2)
    wide = ops.conv_shape((2, 3, 8, 40), (4, 3, 3, 30))
    assert ops.choose("conv2d_forward", shape, device) == "implicit_gemm"
    assert ops.choose("conv2d_forward", wide, device) == "im2col"
    x, weight = on(device, np.zeros(wide.x, np.float32), np.zeros(wide.weight, np.float32))
    for algorithm, text in {
        "implicit_gemm": "32 in all, but the kernel is 3x30; these would work: ",
        "toeplitz": "'toeplitz' does not run on the device",
        "none": "'none' is unknown; use 'auto' or one of",
    }.items():
        with pytest.raises(gpucnn.UnsupportedAlgorithm, match=text):
            ops.conv2d_forward(x, weight, None, wide, algorithm)
    with pytest.raises(gpucnn.UnsupportedAlgorithm, match="'implicit_gemm' does not run on the device cpu"):
        ops.conv2d_forward(np.zeros(wide.x), np.zeros(wide.weight), None, wide, "implicit_gemm")


def test_sizes_beyond_31_bits_are_refused(device):
    """Before anything is launched; the arrays are views of one number."""
    (one,) = on(device, np.zeros((1, 1, 1, 1), np.float32))
    pixels = ops.conv_shape((2**12, 1, 2**10, 2**10), (1, 1, 1, 1))
    x = np.broadcast_to(one, pixels.x)
    with pytest.raises(ValueError, match="pixels of all images; implicit_gemm counts them in 31 bits: split the batch"):
        conv_implicit_gemm.forward(x, one, None, one, pixels)
    with pytest.raises(ValueError, match="pixels a channel"):
        ops.conv2d_backward_bias(np.broadcast_to(one, (2**12, 1, 2**10, 2**10)))
