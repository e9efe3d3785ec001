"""Kernels of pooling against the CPU's operations: the same bits where no sum is rounded, else within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from check import assert_close, assert_relative_l2, assert_same_bits, check_adjoint, sum_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on
from shapes import POOL_CASES, PoolCase, parametrize

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import ops, tensor
from gpucnn.launch.division import divisor
from gpucnn.ops import pool_kernels
from gpucnn.ops.shapes import PoolShape

CASES = POOL_CASES | {
    "pairs_of_windows": PoolCase((2, 3, 6, 12), 2),
    "pairs_of_windows_many": PoolCase((3, 5, 10, 16), 2),
    "no_pairs_odd_height": PoolCase((2, 3, 7, 8), 2, ceil_mode=True),
    "googlenet": PoolCase((1, 3, 14, 14), 3, 1, 1),
    "channels": PoolCase((2, 19, 9, 10), 3, 2, 1),
    "dilated_gaps": PoolCase((1, 2, 13, 12), (2, 3), (4, 5), (1, 1), (2, 1)),
    "empty_channels": PoolCase((2, 0, 6, 6), 2),
    "more_outputs_than_a_block": PoolCase((1, 2, 35, 33), 2, 1),
}
UNDILATED = {name: case for name, case in CASES.items() if case.dilation == 1}
ADAPTIVE = {
    "identity": ((2, 3, 7, 7), (7, 7)),
    "uneven": ((2, 3, 13, 11), (6, 4)),
    "more_outputs_than_pixels": ((1, 2, 2, 3), (7, 7)),
    "global": ((2, 5, 6, 7), (1, 1)),
    "global_small": ((2, 3, 2, 2), (1, 1)),
    "rows_in_warps": ((1, 3, 33, 5), (2, 1)),
    "wide_in_warps": ((1, 2, 3, 150), (1, 2)),
    "empty_batch": ((0, 3, 5, 5), (2, 2)),
}
Rearrange = Callable[[Any], Any]
LAYOUTS: dict[str, tuple[Rearrange, Rearrange]] = {  # what is put into memory, and how x is seen in it
    "contiguous": (lambda x: x, lambda memory: memory),
    "channels_last": (lambda x: x.transpose(0, 2, 3, 1), lambda memory: memory.transpose(0, 3, 1, 2)),
    "transposed": (lambda x: x.swapaxes(2, 3), lambda memory: memory.swapaxes(2, 3)),
    "slices": (lambda x: x.repeat(2, axis=3).repeat(2, axis=0), lambda memory: memory[::2, :, :, ::2]),
    "flipped": (lambda x: x[:, :, ::-1, ::-1], lambda memory: memory[:, :, ::-1, ::-1]),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def integers(*shape: int) -> np.ndarray:
    """Small integers with many ties."""
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(np.float32)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def placed(x: np.ndarray, device: str, layout: str = "contiguous") -> Any:
    """x on the device, in memory as the layout says."""
    arrange, view = LAYOUTS[layout]
    return view(on(device, np.ascontiguousarray(arrange(x)))[0])


def shape_of(case: PoolCase) -> PoolShape:
    return ops.pool_shape("max_pool2d", case.x, *case.window)


def host(results: Any) -> list[np.ndarray]:
    return [devices.to_numpy(result) for result in (results if isinstance(results, tuple) else (results,))]


def assert_same(got: Any, want: Any) -> None:
    """The same bits; indices are equal as numbers."""
    for one, other in zip(host(got), host(want), strict=True):
        assert_same_bits(one.astype(other.dtype) if one.dtype.kind == "i" else one, other)


# ---- maxima


@layouts
@parametrize(CASES)
@pytest.mark.parametrize("fill", [integers, normal])
def test_max(device, case, layout, fill):
    x, shape = fill(*case.x), shape_of(case)
    y, indices = ops.max_pool2d_forward(x, shape)
    got = ops.max_pool2d_forward(placed(x, device, layout), shape)
    assert got[1].dtype == np.int32
    assert_same(got, (y, indices))
    gy = fill(*shape.y)
    assert_same(
        ops.max_pool2d_backward(placed(gy, device, layout), got[1], shape), ops.max_pool2d_backward(gy, indices, shape)
    )


@st.composite
def windows(draw: st.DrawFn, dilations: int = 3) -> PoolCase:
    """Small images under any window."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = draw(st.tuples(st.integers(1, dilations), st.integers(1, dilations)))
    smallest = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (n + draw(st.integers(0, 12)) for n in smallest)
    planes = draw(st.tuples(st.integers(0, 3), st.sampled_from((1, 2, 3, 7, 8, 9, 17))))
    return PoolCase((*planes, height, width), kernel, stride, padding, dilation, draw(st.booleans()))


@settings(max_examples=60)
@given(case=windows(), layout=st.sampled_from([*LAYOUTS]))
def test_max_of_any_window(device, case, layout):
    test_max(device, case, layout, integers)


SPECIAL = {
    "nan_wins": [1, math.nan, 3, 2],
    "last_nan": [math.nan, 5, math.nan, 2],
    "only_nan": [math.nan] * 4,
    "infinities": [-math.inf, math.inf, math.inf, 0],
    "only_minus_infinity": [-math.inf] * 4,
    "zero_before_minus_zero": [-1, 0.0, -0.0, 0.0],
    "minus_zero_before_zero": [-1, -0.0, 0.0, -0.0],
    "equal": [2, 2, 2, 2],
}


@pytest.mark.parametrize("values", SPECIAL.values(), ids=list(SPECIAL))
def test_special_values_of_maxima(device, values):
    x = np.tile(np.array(values, np.float32).reshape(2, 2), (1, 2, 3, 4))
    for case in (
        PoolCase(x.shape, 2),
        PoolCase(x.shape, 3, 2, 1),
        PoolCase(x.shape, (2, 4), 1),
        PoolCase(x.shape, 2, 2, 1),
    ):
        assert_same(ops.max_pool2d_forward(*on(device, x), shape_of(case)), ops.max_pool2d_forward(x, shape_of(case)))
    for size in (1, 2, (3, 5)):
        assert_same(ops.adaptive_max_pool2d_forward(*on(device, x), size), ops.adaptive_max_pool2d_forward(x, size))
    big = np.full((1, 2, 9, 9), -math.inf, np.float32)  # a warp for each plane
    big[:, :, 3:5, 7:9] = np.array(values, np.float32).reshape(2, 2)
    assert_same(ops.adaptive_max_pool2d_forward(*on(device, big), 1), ops.adaptive_max_pool2d_forward(big, 1))


def test_pairs_of_windows_at_odd_addresses(device):
    """Contiguous arrays that begin between two 16-byte vectors."""
    x, gy = normal(1, 2, 4, 8), normal(1, 2, 2, 4)
    shape = ops.pool_shape("max_pool2d", x.shape, 2)
    shifted_x, shifted_gy = (on(device, np.append(np.float32(9), a))[0][1:].reshape(a.shape) for a in (x, gy))
    want = ops.max_pool2d_forward(x, shape)
    got = ops.max_pool2d_forward(shifted_x, shape)
    assert_same(got, want)
    assert_same(ops.max_pool2d_backward(shifted_gy, got[1], shape), ops.max_pool2d_backward(gy, want[1], shape))


def test_a_gradient_of_minus_zero_is_added_to_zero(device):
    x, gy = integers(1, 1, 4, 8), np.full((1, 1, 2, 4), -0.0, np.float32)
    shape = ops.pool_shape("max_pool2d", x.shape, 2)
    y, switches = ops.max_pool2d_forward(*on(device, x), shape)
    gx = host(ops.max_pool2d_backward(*on(device, gy), switches, shape))[0]
    assert not np.signbit(gx).any()


@layouts
@parametrize(ADAPTIVE)
def test_adaptive_max(device, case, layout):
    x_shape, size = case
    x, gy = integers(*x_shape), normal(*x_shape[:2], *size)
    want = ops.adaptive_max_pool2d_forward(x, size)
    got = ops.adaptive_max_pool2d_forward(placed(x, device, layout), size)
    assert_same(got, want)
    gx = ops.adaptive_max_pool2d_backward(placed(gy, device, layout), got[1], x_shape)
    assert_same(gx, ops.adaptive_max_pool2d_backward(gy, want[1], x_shape))


# ---- means


def assert_means(device: str, layout: str, x: np.ndarray, gy: np.ndarray, forward: Any, backward: Any) -> None:
    """Sums of integers are exact and divided once; other sums stay within the bounds of their terms."""
    whole = np.round(4 * x) + 0.0  # no −0, whose sum's sign depends on where it begins
    assert_same(forward(placed(whole, device, layout)), forward(whole))
    terms = x[0, 0].size if x.size else 1
    y = forward(placed(x, device, layout))
    assert_close(host(y)[0], forward(x.astype(np.float64)), sum_bound(terms, forward(np.abs(x)), np.float32))
    gx = backward(placed(gy, device, layout))
    magnitude = backward(np.abs(gy).astype(np.float64))
    assert_close(host(gx)[0], backward(gy.astype(np.float64)), sum_bound(gy.size, magnitude, np.float32))
    check_adjoint(*(array.astype(np.float64) for array in (host(y)[0], gy)), [(x, host(gx)[0])], limit=1e-5)


@layouts
@parametrize(UNDILATED)
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average(device, case, layout, count_include_pad):
    shape = shape_of(case)
    assert_means(
        device, layout, normal(*shape.x), normal(*shape.y),
        lambda x: ops.avg_pool2d_forward(x, shape, count_include_pad),
        lambda gy: ops.avg_pool2d_backward(gy, shape, count_include_pad),
    )  # fmt: skip


@settings(max_examples=60)
@given(case=windows(dilations=1), layout=st.sampled_from([*LAYOUTS]), count_include_pad=st.booleans())
def test_average_of_any_window(device, case, layout, count_include_pad):
    test_average(device, case, layout, count_include_pad)


@layouts
@parametrize(ADAPTIVE)
def test_adaptive_average(device, case, layout):
    x_shape, size = case
    assert_means(
        device, layout, normal(*x_shape), normal(*x_shape[:2], *size),
        lambda x: ops.adaptive_avg_pool2d_forward(x, size),
        lambda gy: ops.adaptive_avg_pool2d_backward(gy, x_shape),
    )  # fmt: skip


@settings(max_examples=60)
@given(
    x_shape=st.tuples(st.integers(0, 3), st.sampled_from((1, 3, 8, 9)), st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    layout=st.sampled_from([*LAYOUTS]),
)
def test_adaptive_of_any_size(device, x_shape, size, layout):
    test_adaptive_average(device, (x_shape, size), layout)
    test_adaptive_max(device, (x_shape, size), layout)


# ---- Lp


@layouts
@parametrize({name: case for name, case in UNDILATED.items() if case.padding == 0})
@pytest.mark.parametrize("norm_type", [1, 2, 2.5, 3])
def test_lp(device, case, layout, norm_type):
    shape = shape_of(case)
    x, gy = np.abs(normal(*shape.x)) + 0.1, normal(*shape.y)  # sums of one sign: errors stay relative
    y = ops.lp_pool2d_forward(x.astype(np.float64), norm_type, shape)
    got = ops.lp_pool2d_forward(placed(x, device, layout), norm_type, shape)
    assert_close(host(got)[0], y, 2e-6 * np.abs(y))
    gx = ops.lp_pool2d_backward(x.astype(np.float64), y, gy.astype(np.float64), norm_type, shape)
    got_gx = ops.lp_pool2d_backward(placed(x, device, layout), got, placed(gy, device, layout), norm_type, shape)
    assert_relative_l2(host(got_gx)[0], gx, 2e-6)


def test_l2_of_integers_is_exact(device):
    x = np.tile(np.array([[3, -4], [0, 0]], np.float32), (2, 3, 5, 4))
    x[0, 0] = 0  # a window of zeros has gradient 0
    shape = ops.pool_shape("lp_pool2d", x.shape, 2)
    y = ops.lp_pool2d_forward(*on(device, x), 2.0, shape)
    assert_same(y, ops.lp_pool2d_forward(x, 2.0, shape))
    gy = np.full(shape.y, 10, np.float32)
    gx = host(ops.lp_pool2d_backward(*on(device, x), y, *on(device, gy), 2.0, shape))[0]
    assert_same_bits(gx, 2 * x)


def test_powers_that_are_not_real_are_nan(device):
    x = -np.ones((1, 1, 2, 2), np.float32)
    shape = ops.pool_shape("lp_pool2d", x.shape, 2)
    for norm_type in (2.5, 3):
        assert np.isnan(host(ops.lp_pool2d_forward(*on(device, x), norm_type, shape))[0]).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 1), (5, 5)])
def test_l2_across_channels(device, size, stride, layout):
    x = normal(2, 7, 3, 5)
    leaf, other = tensor(placed(x, device, layout), requires_grad=True), tensor(x, requires_grad=True)
    y, want = (F.l2_pool_channels(t, size, stride) for t in (leaf, other))
    gy = normal(*want.shape)
    y.backward(*on(device, gy))
    want.backward(gy)
    assert_close(y.numpy(), want.numpy(), 1e-6 * want.numpy())
    assert_relative_l2(leaf.grad.numpy(), other.grad.numpy(), 1e-6)


# ---- unpooling


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "sizes", [((2, 3, 5, 4), (7, 9)), ((1, 2, 13, 11), (5, 5)), ((0, 2, 3, 3), (6, 6)), ((3, 1, 1, 1), (1, 2))]
)
def test_unpooling_anywhere(device, sizes, layout):
    """Many values for one place: the last of them is kept."""
    x_shape, size = sizes
    x, gy = normal(*x_shape), normal(*x_shape[:2], *size)
    indices = np.random.default_rng(5).integers(0, math.prod(size), x_shape)
    want = ops.max_unpool2d_forward(x, indices, size)
    (places,) = on(device, indices)
    assert_same(ops.max_unpool2d_forward(placed(x, device, layout), places, size), want)
    got = ops.max_unpool2d_backward(placed(gy, device, layout), places)
    assert_same(got, ops.max_unpool2d_backward(gy, indices))
    assert want.size == 0 or np.count_nonzero(want) > 0


@pytest.mark.parametrize("count", [63, 64, 65, 129])
def test_the_last_of_many_values_wins(device, count):
    x = np.arange(1, 2 * count + 1, dtype=np.float32).reshape(1, 2, 1, count)
    indices = np.zeros(x.shape, np.int64)
    y = host(ops.max_unpool2d_forward(*on(device, x, indices), (1, 3)))[0]
    assert_same_bits(y, np.array([[[[count, 0, 0]], [[2 * count, 0, 0]]]], np.float32))


# ---- functions on Tensors

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pairs": lambda x: F.max_pool2d(x, 2),
    "average": lambda x: F.avg_pool2d(x, 2, 2),
    "average_all": lambda x: F.avg_pool2d(x, (6, 8)),
    "adaptive_average": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, (4, 3)),
    "global_average": F.global_avg_pool2d,
    "global_max": F.global_max_pool2d,
    "l2": lambda x: F.l2_pool2d(x, 3, 1),
    "lp": lambda x: F.lp_pool2d(x, 4, 2),
    "l2_channels": lambda x: F.l2_pool_channels(x, 3),
}


def forward_backward(function: Callable[[Any], Any], x: Any) -> tuple[np.ndarray, np.ndarray]:
    leaf = tensor(x, requires_grad=True)
    y = function(leaf)
    y.backward(normal(*y.shape))
    assert y.device == leaf.device == leaf.grad.device
    return y.numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_as_on_the_cpu(device, name):
    x = normal(2, 3, 6, 8)
    got, want = forward_backward(FUNCTIONS[name], *on(device, x)), forward_backward(FUNCTIONS[name], x)
    exact = name in ("max", "max_pairs", "adaptive_max", "global_max")
    for one, other in zip(got, want, strict=True):
        assert_same_bits(one, other) if exact else assert_close(one, other, 1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_runs_are_equal(device, name):
    assert_two_runs_equal(lambda: forward_backward(FUNCTIONS[name], *on(device, normal(2, 9, 6, 8))), device)


def test_indices_are_int64_and_lead_back(device):
    x = normal(2, 3, 9, 7)
    y, indices = F.max_pool2d(placed(x, device), 3, 2, return_indices=True)
    assert devices.to_numpy(indices).dtype == np.int64
    adaptive = F.adaptive_max_pool2d(placed(x, device), 2, return_indices=True)[1]
    assert devices.to_numpy(adaptive).dtype == np.int64
    back = F.max_unpool2d(y, indices, 3, 2, output_size=(9, 7))
    want_y, want_indices = F.max_pool2d(x, 3, 2, return_indices=True)
    assert_same(back, F.max_unpool2d(want_y, want_indices, 3, 2, output_size=(9, 7)))
    leaf, other = tensor(y, requires_grad=True), tensor(want_y, requires_grad=True)
    F.max_unpool2d(leaf, indices, 3, 2, output_size=(9, 7)).backward(placed(x, device))
    F.max_unpool2d(other, want_indices, 3, 2, output_size=(9, 7)).backward(x)
    assert_same(leaf.grad.data, other.grad.data)


# ---- faults and errors


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maxima_and_means_are_sound(device, layout):
    x = normal(1, 3, 6, 8)

    def run() -> tuple[Any, ...]:
        results = []
        for window in ((2,), (3, 2, 1), ((2, 3), 1)):
            shape = ops.pool_shape("max_pool2d", x.shape, *window)
            y, switches = ops.max_pool2d_forward(placed(x, device, layout), shape)
            results += [y, switches, ops.max_pool2d_backward(y, switches, shape)]
            y = ops.avg_pool2d_forward(placed(x, device, layout), shape, True)
            results += [y, ops.avg_pool2d_backward(y, shape, False)]
        return tuple(results)

    assert_sound(run, device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_other_pools_are_sound(device, layout):
    x = normal(1, 3, 6, 8)

    def run() -> tuple[Any, ...]:
        results = []
        for size in ((1, 1), (3, 2)):
            y, switches = ops.adaptive_max_pool2d_forward(placed(x, device, layout), size)
            results += [y, switches, ops.adaptive_max_pool2d_backward(y, switches, x.shape)]
            y = ops.adaptive_avg_pool2d_forward(placed(x, device, layout), size)
            results += [y, ops.adaptive_avg_pool2d_backward(y, x.shape)]
        shape = ops.pool_shape("lp_pool2d", x.shape, 3, 2)
        for norm_type in (2, 4):
            y = ops.lp_pool2d_forward(placed(x, device, layout), norm_type, shape)
            results += [y, ops.lp_pool2d_backward(placed(x, device, layout), y, y, norm_type, shape)]
        return tuple(results)

    assert_sound(run, device)


def test_unpooling_is_sound(device):
    x, indices = normal(1, 2, 9, 8), np.random.default_rng(3).integers(0, 20, (1, 2, 9, 8))

    def run() -> tuple[Any, ...]:
        places = on(device, indices)[0]
        y = ops.max_unpool2d_forward(placed(x, device), places, (4, 5))
        return y, ops.max_unpool2d_backward(y, places)

    assert_sound(run, device)


def test_errors(device):
    x = placed(normal(1, 2, 6, 6), device)
    indices = on(device, np.zeros((1, 2, 3, 3), np.int64))[0]
    y = x[:, :, :3, :3]
    with pytest.raises(TypeError, match="float64 on .*, where kernels take float32"):
        F.max_pool2d(x.astype(np.float64), 2)
    with pytest.raises(ValueError, match="a window would lie wholly in the padding"):
        F.max_pool2d(x[:, :, :2, :2], 2, 1, 1, 3)
    with pytest.raises(ValueError, match="indices from 0 to 36 do not fit an image of 6x6"):
        F.max_unpool2d(y, indices + on(device, 36 * np.eye(3, dtype=np.int64))[0], 2)
    with pytest.raises(TypeError, match="must be an array on"):
        F.max_unpool2d(y, devices.to_numpy(indices), 2)
    with pytest.raises(ValueError, match="its rows, and a plane's pixels, must be fewer than 2\\^31"):
        pool_kernels._geometry("max_pool2d", PoolShape(2**20, 2**10, 2, 2, 1, 1, *[(2, 2)] * 4), 0, None, 0, False)


def test_a_window_of_padding_alone_is_refused_as_on_the_cpu(device):
    """Every small window with dilation: the CPU refuses exactly the same ones."""
    for size, kernel, dilation, padding, ceil_mode in np.ndindex(5, 4, 4, 3, 2):
        if 2 * padding > kernel + 1:
            continue
        x = normal(1, 1, size + 1, 9)
        try:
            shape = ops.pool_shape(
                "max_pool2d", x.shape, (kernel + 1, 1), 1, (padding, 0), (dilation + 1, 1), bool(ceil_mode)
            )
        except ValueError:
            continue
        assert refuses(x, shape) == refuses(*on(device, x), shape), shape


def refuses(x: Any, shape: PoolShape) -> bool:
    try:
        ops.max_pool2d_forward(x, shape)
    except ValueError as error:
        assert "wholly in the padding" in str(error)
        return True
    return False


def test_division_by_a_known_number():
    numbers = np.unique(np.concatenate([np.arange(100), *(2**k + np.arange(-2, 3) for k in range(2, 31)), [2**31 - 1]]))
    numbers = numbers[(numbers >= 0) & (numbers < 2**31)].astype(np.uint64)
    for value in numbers[1:]:
        d, magic, shift = divisor(int(value))
        assert magic < 2**32
        quotients = ((numbers * np.uint64(magic) >> np.uint64(32)) + numbers) >> np.uint64(shift)
        assert np.array_equal(quotients, numbers // np.uint64(d)), value
