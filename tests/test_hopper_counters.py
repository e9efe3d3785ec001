"""What the simulator counts of kernels for Hopper: passes of shared memory; global traffic, beside the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel_check import on

from gpucnn import device as devices
from gpucnn.launch import simulator
from gpucnn.launch.simulator import Profile
from gpucnn.ops import conv_hopper, gemm_hopper
from gpucnn.ops.conv_hopper import Finish
from gpucnn.ops.gemm_hopper import Form
from gpucnn.ops.shapes import ConvShape, conv_shape
from tests import wgmma

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
TILE = 128  # rows and columns of all tiles here
SECTOR = 32
MOST = 1.15  # of the model's traffic: that also has to do for the bias, which it leaves out


def profile_of(run: Callable[[], Any], kernel: str) -> Profile:
    with simulator.profiling(lines=False) as found:
        run()
    return dict(found)[kernel]


def traffic(profile: Profile, writes: bool) -> int:
    """Bytes of the sectors that were touched in global memory."""
    return sum(SECTOR * c.units for c in profile.lines.values() if c.space == "global" and c.writes == writes)


def assert_no_conflicts(profile: Profile, passes: int) -> None:
    """Nothing takes more passes than its bytes, and threads and units take so many together: none is left out."""
    shared = [c for c in profile.lines.values() if c.space == "shared"]
    assert all(c.units == c.least for c in shared)
    assert sum(c.units for c in shared) == passes


def assert_traffic(profile: Profile, reads: int, writes: int, whole: bool = True) -> None:
    """Reads at most MOST times the model's, and no less where no operand has a border; writes exactly the result."""
    found = traffic(profile, False)
    assert found <= MOST * reads
    assert found >= reads if whole else found > 0.5 * reads
    assert traffic(profile, True) == writes


@pytest.mark.parametrize(
    ("kind", "out", "layout"),
    [("bfloat16", "bfloat16", "nt"), ("bfloat16", "float32", "tn"), ("float32",) * 2 + ("nt",)],
)
def test_products(kind, out, layout):
    """Each tile reads its rows and columns once, shared memory takes them in and gives the result out."""
    M, N, K = 2 * TILE, TILE, 1024
    dtype, result = DTYPES[kind], DTYPES[out]
    sizes = (1, *((M, K) if layout[0] == "n" else (K, M))), (1, *((N, K) if layout[1] == "t" else (K, N)))
    a, b = on("sim", *(np.zeros(size, dtype) for size in sizes))
    a, b = (a if layout[0] == "n" else a.swapaxes(1, 2)), (b.swapaxes(1, 2) if layout[1] == "t" else b)
    (bias,) = on("sim", np.zeros(N, np.float32))
    c = devices.empty((1, M, N), result, a)
    form = gemm_hopper.Form("128x128", 1, 2)
    name = f"gemm_{layout}_hopper_{gemm_hopper.TYPES[kind]}_{gemm_hopper.OUTPUTS[out]}_128x128"
    profile = profile_of(lambda: gemm_hopper.multiply(a, b, c, bias, False, True, 132, None, form), name)
    operands = 2 * (TILE + TILE) * K * dtype.itemsize  # of two tiles
    assert_no_conflicts(profile, (operands + 2 * c.nbytes) // 128)
    assert_traffic(profile, operands, c.nbytes)


def most_in_a_bank(places: np.ndarray) -> int:
    """Of the words at these bytes."""
    return int(np.bincount(np.unique(places // 4) % 32).max())


@pytest.mark.parametrize(("form", "mn_major"), [("bf16", False), ("bf16", True), ("tf32", False)])
def test_matrices_that_tensor_cores_read(form, mn_major):
    """Eight times 16 bytes, as the kernels' operands lie, are in all banks; rows of 128 bytes as such would not be."""
    elements = 4 if form == "tf32" else 8  # of 16 bytes
    for slice_start in (0, 2048) if mn_major else (0, 32, 64, 96):
        at = wgmma.addresses(TILE, form, mn_major, 128, slice_start, 8192 if mn_major else 16, 1024)
        matrices = at.reshape(TILE // 8, 8, -1, elements).swapaxes(1, 2).reshape(-1, 8 * elements)
        assert {most_in_a_bank(matrix) for matrix in matrices} == {1}
    assert most_in_a_bank(np.arange(8)[:, None] * 128 + np.arange(16)) == 8


def images(size: tuple[int, ...]) -> Any:
    """Zeros (N,C,H,W) in the order (N,H,W,C)."""
    N, C, H, W = size
    return on("sim", np.zeros((N, H, W, C), DTYPES["bfloat16"]))[0].transpose(0, 3, 1, 2)


def layer() -> ConvShape:
    """256 pixels, whose patches have 3 × 3 taps of 64 channels, and 128 filters."""
    return conv_shape((1, 64, 16, 16), (TILE, 64, 3, 3), padding=1)


def test_convolution():
    """A tile reads the patches of its pixels, as often as there are taps, and all weights."""
    shape = layer()
    x, y = images(shape.x), images(shape.y)
    weight, bias = on("sim", np.zeros(shape.weight, DTYPES["bfloat16"]), np.zeros(shape.K, np.float32))
    finish, form = Finish(bias, relu=True), Form("128x128")

    def run() -> None:
        conv_hopper.forward(x, weight, y, shape, 2, finish, form=form)

    profile = profile_of(run, "conv2d_hopper_images_bfloat16_128x128")
    operands = 2 * (TILE + TILE) * 9 * 64 * 2
    assert_no_conflicts(profile, (operands + 2 * y.nbytes) // 128)
    assert_traffic(profile, operands, y.nbytes, whole=False)


def test_gradient_of_weights():
    """A tile of all filters and two taps reads both images once a tap; the last of five has one tap left over."""
    shape = layer()
    x, gy = images(shape.x), images(shape.y)
    gw = devices.empty(shape.weight, np.float32, x)

    def run() -> None:
        conv_hopper.backward_weight(x, gy, gw, shape, 2, 1)

    profile = profile_of(run, "conv2d_hopper_weights_bfloat16_128x128")
    operands, sums = 5 * (TILE + TILE) * 256 * 2, TILE * 9 * 64 * 4
    assert_no_conflicts(profile, (operands + 2 * sums) // 128)
    assert_traffic(profile, operands, sums, whole=False)
