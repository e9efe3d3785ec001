"""The algorithm "fft" on kernels: all passes and tile sizes within bounds, chunks, counters, soundness, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from check import assert_close, assert_relative_l2, assert_same_bits, check_adjoint, rounding_bound
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_check import assert_sound, assert_two_runs_equal, on
from shapes import CONV_CASES, ConvCase, parametrize

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.launch import simulator
from gpucnn.ops import conv_fft

FLOAT = np.dtype(np.float32)
CASES = {
    name: case for name, case in CONV_CASES.items() if case.stride == case.dilation == case.groups == 1 and case.x[0]
} | {
    "tiles": ConvCase((2, 3, 37, 70), (3, 3, 3, 5), padding=(1, 2)),  # several along both axes, tails of both
    "one_full_tile": ConvCase((2, 2, 15, 15), (3, 2, 3, 3), padding=1),  # padding after the image wraps to its start
    "padding_larger_than_kernel": ConvCase((1, 2, 9, 20), (3, 2, 2, 3), padding=(5, 7)),
    "wide_kernel": ConvCase((1, 2, 12, 40), (2, 2, 3, 15), padding=(1, 7)),
}
tiles = pytest.mark.parametrize("tile", conv_fft.TILES)


@pytest.fixture
def use_tile(monkeypatch):
    """A function that leaves one size of tiles."""
    return lambda tile: monkeypatch.setattr(conv_fft, "TILES", (tile,))


def conv_shape(case):
    return ops.conv_shape(case.x, case.weight, **case.options)


def make(case):
    """x, weight, bias, gy and the shape."""
    shape = conv_shape(case)
    gy = np.random.default_rng(3).standard_normal(shape.y).astype(np.float32)
    return *case.arrays(np.float32), gy, shape


def passes(x, weight, bias, gy, shape):
    """(y, gx, gw)"""
    return (
        ops.conv2d_forward(x, weight, bias, shape, "fft"),
        ops.conv2d_backward_input(gy, weight, shape, "fft"),
        ops.conv2d_backward_weight(x, gy, shape, "fft"),
    )


def definition(x, weight, bias, gy, shape):
    options = {"padding": shape.padding}
    return (
        reference.conv2d(x, weight, bias, **options),
        reference.conv2d_backward_input(gy, weight, shape.x, **options),
        reference.conv2d_backward_weight(x, gy, shape.weight, **options),
    )


def assert_bounded(case, device):
    *arrays, shape = make(case)
    got = passes(*on(device, *arrays), shape)
    wanted, magnitudes = definition(*arrays, shape), definition(*map(np.abs, arrays), shape)
    for result, want, magnitude in zip(got, wanted, magnitudes, strict=True):
        result = devices.to_numpy(result)
        assert_relative_l2(result, want, 1e-6)
        # A tile's error is spread over all of it, so that it is one of the largest sum of the tile.
        assert_close(result, want, rounding_bound(16, magnitude.max(initial=0), np.float32))


@tiles
@parametrize(CASES)
def test_errors_are_bounded(case, tile, device, use_tile):
    if tile < max(case.weight[2:]):
        pytest.skip("the kernel does not fit the tile")
    use_tile(tile)
    assert_bounded(case, device)


def test_chosen_tiles_and_large_kernels(device):
    assert_bounded(ConvCase((1, 2, 40, 36), (2, 2, 32, 31), padding=3), device)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_shape(device, data):
    draw = data.draw
    channels, filters = (draw(st.integers(1, 5), label=name) for name in ("channels", "filters"))
    size = tuple(draw(st.integers(1, 36), label=name) for name in "HW")
    kernel = tuple(draw(st.integers(1, 11), label=name) for name in "RS")
    padding = tuple(draw(st.integers(0, k + 1)) for k in kernel)
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, kernel, strict=True)))
    case = ConvCase((draw(st.sampled_from([1, 2, 5])), channels, *size), (filters, channels, *kernel), padding=padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_fft, "TILES", (draw(st.sampled_from([16, 32, 64])),))
        assert_bounded(case, device)


@tiles
def test_one_pixel_gives_the_filter(tile, device, use_tile):
    """A pixel of 1 at each place in turn: around it y is the filter, rotated; elsewhere 0 but for rounding."""
    use_tile(tile)
    rows, columns = (range(0, 2 * tile, n) for n in (tile // 2 - 1, tile // 4 + 1))
    places = [(h, w) for h in rows for w in columns]
    x = np.zeros((len(places), 1, 2 * tile, 2 * tile), np.float32)
    for image, place in zip(x, places, strict=True):
        image[0][place] = 1
    weight = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    shape = ops.conv_shape(x.shape, weight.shape, padding=1)
    y = devices.to_numpy(ops.conv2d_forward(*on(device, x, weight, None), shape, "fft"))
    padded = np.zeros((2 * tile + 2, 2 * tile + 2), np.float32)
    for result, (h, w) in zip(y[:, 0], places, strict=True):
        padded[...] = 0
        padded[h : h + 3, w : w + 3] = weight[0, 0, ::-1, ::-1]
        assert_close(result, padded[1:-1, 1:-1], weight.sum() * 2.0**-24)


def test_empty_batch(device):
    *arrays, shape = make(CONV_CASES["empty_batch"])
    y, gx, gw = map(devices.to_numpy, passes(*on(device, *arrays), shape))
    assert (y.shape, gx.shape) == (shape.y, shape.x) and not gw.any()
    assert conv_fft.forward_workspace(shape, FLOAT) == conv_fft.backward_weight_workspace(shape, FLOAT) == 0


@pytest.mark.parametrize("layout", ["channels_last", "flipped", "broadcast"])
def test_any_layout_gives_the_same_bits(layout, device):
    x, weight, bias, gy, shape = make(ConvCase((2, 6, 19, 18), (4, 6, 3, 2), padding=1))
    views = {
        "channels_last": lambda a: on(device, a.transpose(0, 2, 3, 1).copy())[0].transpose(0, 3, 1, 2),
        "flipped": lambda a: on(device, a[:, ::-1, :, ::-1].copy())[0][:, ::-1, :, ::-1],
        "broadcast": lambda a: np.broadcast_to(on(device, a[:1, :1, :1].copy())[0], a.shape),
    }
    x_view, gy_view = views[layout](x), views[layout](gy)
    x, gy = (devices.to_numpy(view).copy() for view in (x_view, gy_view))
    want = passes(*on(device, x, weight, bias, gy), shape)
    for one, other in zip(passes(x_view, *on(device, weight, bias), gy_view, shape), want, strict=True):
        assert_same_bits(devices.to_numpy(one), devices.to_numpy(other))


@tiles
def test_passes_are_adjoint(tile, device, use_tile):
    use_tile(tile)
    x, weight, _, gy, shape = make(ConvCase((3, 5, 35, 21), (6, 5, 5, 4), padding=(1, 2)))
    y, gx, gw = (devices.to_numpy(a).astype(np.float64) for a in passes(*on(device, x, weight, None, gy), shape))
    check_adjoint(y, gy, [(x, gx), (weight, gw)], limit=1e-6)


def test_values_that_are_not_finite_stay_in_their_tile(device):
    x, weight, bias, gy, shape = make(ConvCase((3, 3, 24, 30), (4, 3, 3, 3), padding=1))
    clean = passes(*on(device, x, weight, bias, gy), shape)
    x[1, 1, 3, 4], gy[1, 2, 0, 8] = np.nan, np.inf
    got = passes(*on(device, x, weight, bias, gy), shape)
    with np.errstate(invalid="ignore"):
        y, gx, gw = definition(x, weight, bias, gy, shape)
    for result, want in zip(got, (y, gx, gw), strict=True):
        assert (np.isfinite(want) | ~np.isfinite(devices.to_numpy(result))).all()
    for result, want in zip(got[:2], clean[:2], strict=True):
        for image in (0, 2):  # images never share a transform
            assert_same_bits(devices.to_numpy(result)[image], devices.to_numpy(want)[image])


def test_an_image_does_not_disturb_another(device, use_tile):
    use_tile(32)
    x, weight, bias, gy, shape = make(ConvCase((2, 3, 20, 20), (4, 3, 5, 5)))
    alone = ops.conv2d_forward(*on(device, x[1:], weight, bias), shape._replace(N=1), "fft")
    x[0] *= 1e20
    both = ops.conv2d_forward(*on(device, x, weight, bias), shape, "fft")
    assert_same_bits(devices.to_numpy(both)[1:], devices.to_numpy(alone))


def test_bias_and_relu_in_the_same_pass(device):
    x, weight, bias, _, shape = make(CASES["tiles"])
    x[0, 0, 0, 0] = np.nan
    plain, clipped = (
        devices.to_numpy(ops.conv2d_forward(*on(device, x, weight, bias), shape, "fft", relu=relu))
        for relu in (False, True)
    )
    assert np.isnan(plain).any() and (plain < 0).any()
    assert_same_bits(clipped, np.where(plain < 0, np.float32(0), plain))


@pytest.mark.parametrize("name", conv_fft.PRODUCT_TILES)
def test_products_with_tails(name, device, use_tile, monkeypatch):
    """More rows, columns and terms than a tile."""
    use_tile(16)
    monkeypatch.setattr(conv_fft, "_product_tile", lambda rows, columns: name)
    assert_bounded(ConvCase((131, 9, 2, 3), (67, 9, 2, 2)), device)


def test_more_terms_than_a_chunk_of_sums(device, use_tile):
    use_tile(16)
    assert_bounded(ConvCase((3, 1031, 3, 3), (3, 1031, 2, 2)), device)


@pytest.mark.parametrize("splits", [1, 3])
def test_weight_gradient_of_many_tiles(splits, device, monkeypatch):
    """1e5 terms, in chunks that add to the same sums; with three splits, of which the last may have no terms."""
    monkeypatch.setattr(conv_fft, "SPLIT_TERMS", 1 << 30 if splits == 1 else 1)
    monkeypatch.setattr(conv_fft, "FULL_GPU", splits * 130)
    monkeypatch.setattr(conv_fft, "TILES", (16,))
    shape = ops.conv_shape((9, 1, 112, 112), (2, 1, 3, 3), padding=1)
    rng = np.random.default_rng(5)
    x, gy = (np.abs(rng.standard_normal(size)).astype(np.float32) for size in (shape.x, shape.y))
    assert gy.size / 2 > 1e5
    want = reference.conv2d_backward_weight(x, gy, shape.weight, padding=1)
    for limit in (None, 1 << 20):
        gw = devices.empty(shape.weight, x.dtype, on(device, x)[0])
        assert conv_fft._weight_plan(shape, limit).splits == splits
        assert (conv_fft._weight_plan(shape, limit).images < 9) == (limit is not None)
        conv_fft.backward_weight(*on(device, x, gy), gw, shape, workspace_limit=limit)
        assert_relative_l2(devices.to_numpy(gw), want, 1e-6)
    x *= rng.choice([-1, 1], x.shape).astype(np.float32)  # |gw| is far smaller than its terms
    want = reference.conv2d_backward_weight(x, gy, shape.weight, padding=1)
    assert_relative_l2(devices.to_numpy(ops.conv2d_backward_weight(*on(device, x, gy), shape, "fft")), want, 2e-6)


@parametrize(
    {"tiles": ConvCase((5, 3, 37, 20), (4, 3, 3, 3), padding=1), "one_tile": ConvCase((7, 3, 9, 9), (5, 3, 2, 2))}
)
def test_chunks_of_images_give_the_same_bits(case, device, use_tile):
    use_tile(16)
    x, weight, bias, gy, shape = make(case)
    x, weight, bias, gy = on(device, x, weight, bias, gy)
    y, gx, _ = passes(x, weight, bias, gy, shape)
    whole = conv_fft.forward_workspace(shape, FLOAT)
    for limit in (0, whole // 2, whole - 1, whole):
        workspace = conv_fft.forward_workspace(shape, FLOAT, limit)
        assert workspace <= max(limit, conv_fft.forward_workspace(shape, FLOAT, 0))
        chunked, gradient = devices.empty(shape.y, FLOAT, x), devices.empty(shape.x, FLOAT, x)
        conv_fft.forward(x, weight, bias, chunked, shape, workspace_limit=limit)
        conv_fft.backward_input(gy, weight, gradient, shape, workspace_limit=limit)
        assert_same_bits(devices.to_numpy(chunked), devices.to_numpy(y))
        assert_same_bits(devices.to_numpy(gradient), devices.to_numpy(gx))


@pytest.mark.parametrize("limit", [None, 100_000, 0])
def test_workspaces_are_what_is_allocated(limit, device, monkeypatch):
    x, weight, bias, gy, shape = make(ConvCase((5, 4, 20, 13), (6, 4, 3, 3), padding=1))
    moved, allocated = on(device, x, weight, bias, gy), []
    y, gx, gw = (devices.empty(size, FLOAT, moved[0]) for size in (shape.y, shape.x, shape.weight))
    empty = devices.empty

    def counted(*arguments):
        result = empty(*arguments)
        allocated.append(result.nbytes)
        return result

    monkeypatch.setattr(devices, "empty", counted)
    runs = {
        conv_fft.forward_workspace: lambda: conv_fft.forward(*moved[:3], y, shape, workspace_limit=limit),
        conv_fft.backward_input_workspace: lambda: conv_fft.backward_input(moved[3], moved[1], gx, shape, limit),
        conv_fft.backward_weight_workspace: lambda: conv_fft.backward_weight(moved[0], moved[3], gw, shape, limit),
    }
    for workspace, run in runs.items():
        allocated.clear()
        run()
        kept, *chunks = allocated  # of the filters; two arrays a chunk, freed after it
        assert workspace(shape, FLOAT, limit) == kept + max(sum(chunks[i : i + 2]) for i in range(0, len(chunks), 2))


@tiles
def test_two_schedules_give_the_same_bits(tile, device, use_tile):
    use_tile(tile)
    *arrays, shape = make(ConvCase((2, 17, 21, 19), (5, 17, 3, 3), padding=1))
    moved = on(device, *arrays)
    assert_two_runs_equal(lambda: passes(*moved, shape), device)


def test_kernels_are_sound(device, use_tile):
    """More terms than two stages of shared memory, tails everywhere."""
    use_tile(16)
    *arrays, shape = make(ConvCase((1, 17, 3, 4), (3, 17, 2, 3), padding=1))
    moved = on(device, *arrays)
    assert_sound(lambda: passes(*moved, shape), device)


@tiles
def test_transforms_are_sound_and_inverses(tile, device, rng):
    """Of images in tiles with a gap at the end, and back: the images again."""
    images = rng.standard_normal((1, 3, tile + 3, 5)).astype(np.float32)
    x = on(device, images)[0]
    cut = conv_fft.Tiling(tile, (2, 1), (tile, 7))

    def run():
        spectra, result = conv_fft._spectra(x, cut, 3, 2), devices.empty(x.shape, FLOAT, x)
        conv_fft._transform("test", x, spectra, cut, (0, 0), tile**-2)
        conv_fft._invert(spectra, result, None, cut)
        return result

    assert_close(devices.to_numpy(run()), images, rounding_bound(16, np.abs(images).max(), np.float32))
    assert_sound(run, device)


def test_largest_tiles_fit_the_smallest_shared_memory(device, use_tile):
    """64 KB of dynamic shared memory, all that sm_75 has."""
    if device != "sim":
        pytest.skip("the simulator takes any architecture's limit")
    use_tile(64)
    with simulator.configured(architecture="sm_75"):
        assert_bounded(CONV_CASES["vgg"], device)


def counters(device, run):
    if device != "sim":
        pytest.skip("counters are the simulator's")
    with simulator.profiling() as launches:
        run()
    return launches


def total(profile, space, writes):
    chosen = [counts for counts in profile.lines.values() if counts.space == space and counts.writes == writes]
    return tuple(sum(getattr(counts, name) for counts in chosen) for name in ("requests", "bytes", "units", "least"))


@tiles
def test_memory_traffic_of_the_transforms(tile, device, use_tile):
    """Spectra are read and written once, in runs of whole sectors; images too, but for the halos; no conflicts."""
    use_tile(tile)
    x, weight, _, _, shape = make(ConvCase((2, 4, tile, tile), (8, 4, 3, 3)))
    launches = dict(counters(device, lambda: ops.conv2d_forward(*on(device, x, weight, None), shape, "fft")))
    bins, run = tile * tile // 2 + 2, min(16, 256 // tile) * 8
    for name, channels in ((f"fft_tiles_{tile}", 4), (f"fft_inverse_tiles_{tile}", 8)):
        spectra = total(launches[name], "global", writes="inverse" not in name)
        image = total(launches[name], "global", writes="inverse" in name)
        assert spectra[1] == 8 * bins * 2 * channels
        assert spectra[2] == spectra[3] and run >= 32  # every sector is full
        assert image[1] == 4 * (x.size if channels == 4 else np.prod(shape.y))
        for writes in (False, True):
            requests, _, wavefronts, _ = total(launches[name], "shared", writes)
            assert requests > 0 and wavefronts == 2 * requests


def test_counters_of_the_product(device, use_tile):
    use_tile(16)
    x, weight, _, _, shape = make(ConvCase((128, 16, 8, 8), (64, 16, 3, 3)))
    found = dict(counters(device, lambda: ops.conv2d_forward(*on(device, x, weight, None), shape, "fft")))
    product = found["fft_multiply_128x64"]
    assert product.flops == 8 * 130 * 128 * 16 * 64
    assert product.barriers == 130 * 16 // 8
    requests, _, wavefronts, _ = total(product, "shared", writes=False)
    assert wavefronts == 2 * requests
    _, _, wavefronts, least = total(product, "shared", writes=True)
    assert wavefronts == least
    assert total(product, "global", writes=False)[1] == 8 * 130 * 16 * (128 + 64)
    assert total(product, "global", writes=True)[1] == 8 * 130 * 128 * 64


@pytest.mark.parametrize(
    ("sizes", "kernel", "padding", "want"),
    [
        ((13, 13), 3, 1, (16, (1, 1), (13, 13))),
        ((15, 15), 3, 1, (16, (1, 1), (15, 15))),
        ((32, 32), 9, 0, (32, (1, 1), (24, 24))),
        ((27, 27), 5, 2, (32, (1, 1), (27, 27))),
        ((64, 64), 9, 0, (64, (1, 1), (56, 56))),
        ((224, 224), 3, 1, (16, (16, 16), (14, 14))),
        ((128, 128), 11, 0, (32, (6, 6), (22, 22))),
    ],
)
def test_choice_of_tiles(sizes, kernel, padding, want):
    shape = ops.conv_shape((128, 128, *sizes), (128, 128, kernel, kernel), padding=padding)
    limit = 1 << 30
    assert conv_fft.choose_tiling(conv_fft.forward_correlation(shape), shape.N, limit) == want
    # Where all of gy fits a tile, its gradient takes no more of them.
    if want[1] == (1, 1):
        assert conv_fft.choose_tiling(conv_fft.backward_correlation(shape), shape.N, limit).grid == (1, 1)


def test_choice_of_tiles_for_few_images_and_little_memory():
    shape = ops.conv_shape((1, 512, 57, 57), (512, 512, 5, 5), padding=2)
    correlation = conv_fft.forward_correlation(shape)
    assert conv_fft.choose_tiling(correlation, 128, 1 << 34).size == 64  # one tile an image
    assert conv_fft.choose_tiling(correlation, 1, 1 << 34).size == 16  # most of the spectra are the filters'
    assert conv_fft.choose_tiling(correlation, 128, 1 << 31).size == 16  # those of 64 x 64 take 4 GB
    assert conv_fft.choose_tiling(correlation, 128, 0).size == 16  # the least


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        ((4, 2, 3, 3), {"groups": 2}, "it needs groups 1, not 2"),
        ((4, 4, 3, 3), {"stride": 2}, r"it needs stride 1, not \(2, 2\)"),
        ((4, 4, 3, 3), {"dilation": (2, 1)}, r"it needs dilation 1, not \(2, 1\)"),
        ((4, 4, 33, 3), {}, "it needs kernels of at most 32x32, not 33x3"),
    ],
)
def test_what_is_refused(weight, options, message, device):
    x = np.zeros((1, 4, 40, 40), np.float32)
    shape = ops.conv_shape(x.shape, weight, **options)
    with pytest.raises(ops.UnsupportedAlgorithm, match=message):
        ops.conv2d_forward(*on(device, x, np.zeros(weight, np.float32), None), shape, "fft")
