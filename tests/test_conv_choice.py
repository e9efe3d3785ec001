"""The choice of a convolution's algorithm: golden regimes of the model, guards, and the limit of workspace."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import nn, ops
from gpucnn.ops import cards, conv_choice, conv_cost, conv_table
from gpucnn.ops.cards import CARDS
from tests.check import assert_equal, assert_same_bits

ALL = ("direct", "implicit_gemm", "im2col", "winograd", "winograd4", "fft")
FLOAT32 = np.dtype(np.float32)
H200 = CARDS["H200"]


def conv(N, C, H, K, kernel, stride=1, padding=0, dilation=1, groups=1):
    return ops.conv_shape((N, C, H, H), (K, C // groups, kernel, kernel), stride, padding, dilation, groups)


def able(shape):
    """The names that would support a shape if all kernels were there."""
    plain = shape.groups == 1 and shape.stride == shape.dilation == (1, 1)
    transforms = {"winograd": shape.R == shape.S == 3, "winograd4": shape.R == shape.S == 3, "fft": True}
    return [name for name in ALL if name not in transforms or (plain and transforms[name])]


def chosen(shape, operation="conv2d_forward", card=H200, names=None, arithmetic="float32"):
    return conv_choice.choose_for_kernels(operation, shape, names or able(shape), card, None, arithmetic).algorithm


LAYERS = {  # of convnet-benchmarks (L), its AlexNet (A) and VGG-16 (V)
    "L1": conv(128, 3, 128, 96, 11), "L2": conv(128, 64, 64, 128, 9), "L3": conv(128, 128, 32, 128, 9),
    "L4": conv(128, 128, 16, 128, 7), "L5": conv(128, 384, 13, 384, 3),
    "A1": conv(128, 3, 224, 64, 11, 4, 2), "A2": conv(128, 64, 27, 192, 5, 1, 2),
    "A3": conv(128, 192, 13, 384, 3, 1, 1),
    "V1_1": conv(64, 3, 224, 64, 3, 1, 1), "V1_2": conv(64, 64, 224, 64, 3, 1, 1),
    "V2_1": conv(64, 64, 112, 128, 3, 1, 1), "V2_2": conv(64, 128, 112, 128, 3, 1, 1),
    "V3_2": conv(64, 256, 56, 256, 3, 1, 1), "V4_2": conv(64, 512, 28, 512, 3, 1, 1),
    "V5": conv(64, 512, 14, 512, 3, 1, 1),
}  # fmt: skip

# Milliseconds at the H200's nominal rates, worked out by hand from the formulae of docs/algorithms.md.
FLOORS = {
    "L1": {"implicit_gemm": 1.854, "fft": 0.930},
    "L2": {"implicit_gemm": 7.951, "fft": 0.440},
    "L3": {"implicit_gemm": 2.921, "fft": 0.194},
    "L4": {"implicit_gemm": 0.307, "fft": 0.049},
    "L5": {"implicit_gemm": 0.614, "winograd": 0.336, "winograd4": 0.227},
    "A2": {"implicit_gemm": 0.856, "fft": 0.155},
    "A3": {"implicit_gemm": 0.428, "winograd": 0.229, "winograd4": 0.208, "fft": 0.189},
    "V1_1": {"direct": 0.179},
    "V1_2": {"implicit_gemm": 3.534, "winograd": 1.656, "winograd4": 1.997},
    "V3_2": {"implicit_gemm": 3.534, "winograd": 1.629, "winograd4": 1.162, "fft": 1.256},
    "V4_2": {"implicit_gemm": 3.534, "winograd": 1.624, "winograd4": 1.023, "fft": 1.200},
    "V5": {"implicit_gemm": 0.883, "winograd": 0.406, "winograd4": 0.341, "fft": 0.344},
}


@pytest.mark.parametrize("layer", FLOORS)
def test_floors(layer):
    for algorithm, milliseconds in FLOORS[layer].items():
        found = conv_cost.estimate(algorithm, "conv2d_forward", LAYERS[layer], H200)
        assert found.floor / 1e9 == pytest.approx(milliseconds, rel=0.02), algorithm
        assert found.planned > found.floor


def test_floors_of_one_layer_by_hand():
    """V5 as one product: 2·64·512·196·512·9 operations at 67·10^12 a second, and three arrays at 4.8·10^12 bytes.

    Before it weights are read and written in another order.
    """
    found = conv_cost.estimate("implicit_gemm", "conv2d_forward", LAYERS["V5"], H200)
    weights = 4 * 512 * 512 * 9
    assert found.flops == 2 * 64 * 512 * 196 * 512 * 9
    assert found.bytes == 4 * 2 * 64 * 512 * 196 + 3 * weights
    assert found.floor == found.flops * 1000 // 67_000 + 2 * weights * 1000 // 4800
    assert found.bound == "products"


REGIMES = {  # on the H200
    "depthwise": (conv(32, 64, 56, 64, 3, 1, 1, groups=64), "direct"),
    "narrow groups": (conv(32, 128, 56, 128, 3, 1, 1, groups=32), "direct"),
    "wide groups": (conv(32, 128, 56, 128, 3, 1, 1, groups=2), "implicit_gemm"),
    "first layer": (LAYERS["V1_1"], "direct"),
    "first layer, stride 4": (LAYERS["A1"], "direct"),
    "first layer, 11x11": (LAYERS["L1"], "fft"),
    "first layer, 11x11, one small image": (conv(1, 3, 74, 96, 11), "direct"),
    "1x1": (conv(32, 256, 56, 64, 1), "implicit_gemm"),
    "stride 2": (conv(32, 128, 56, 128, 3, 2, 1), "implicit_gemm"),
    "dilation 2": (conv(32, 128, 56, 128, 3, 1, 2, 2), "implicit_gemm"),
    "3x3, many channels": (LAYERS["V3_2"], "winograd4"),
    "3x3, more channels": (LAYERS["V4_2"], "winograd4"),
    "3x3, h just above 2.8 r": (LAYERS["V2_1"], "winograd4"),
    "3x3, 14x14 and a batch": (LAYERS["V5"], "winograd4"),
    "3x3, 13x13, 128 images": (LAYERS["A3"], "fft"),
    "3x3, 64 channels": (LAYERS["V1_2"], "winograd"),
    "3x3, 64 channels, one image": (LAYERS["V1_2"]._replace(N=1), "winograd"),
    "3x3, 64 channels, one image, too few blocks": (conv(1, 64, 56, 64, 3, 1, 1), "implicit_gemm"),
    "3x3, 256 channels at 56, one image": (conv(1, 256, 56, 256, 3, 1, 1), "winograd4"),
    "3x3, 512 channels at 14, one image": (conv(1, 512, 14, 512, 3, 1, 1), "im2col"),  # fewer patches than weights
    "3x3, 128 channels at 14, one image": (conv(1, 128, 14, 128, 3, 1, 1), "implicit_gemm"),
    "5x5": (LAYERS["A2"], "fft"),
    "7x7": (LAYERS["L4"], "fft"),
    "9x9": (LAYERS["L2"], "fft"),
    "9x9, one image": (LAYERS["L2"]._replace(N=1), "fft"),
    "7x7, one small image": (LAYERS["L4"]._replace(N=1), "implicit_gemm"),
}


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes(regime):
    shape, algorithm = REGIMES[regime]
    assert chosen(shape) == algorithm


def test_regimes_of_backward_passes():
    assert chosen(LAYERS["V3_2"], "conv2d_backward_input") == "winograd4"
    assert chosen(LAYERS["V3_2"], "conv2d_backward_weight") in ("winograd4", "fft")
    assert chosen(LAYERS["L2"], "conv2d_backward_input") == chosen(LAYERS["L2"], "conv2d_backward_weight") == "fft"
    assert chosen(LAYERS["V1_1"], "conv2d_backward_weight") == "direct"
    assert chosen(LAYERS["A1"], "conv2d_backward_input") == "implicit_gemm"


TENSOR_FLOORS = {  # from 165, 495 and 990 · 10^12 operations a second
    "L1": {"float32_tensor": 0.753, "tf32": 0.251, "bfloat16": 0.125},
    "L2": {"float32_tensor": 3.229, "tf32": 1.076, "bfloat16": 0.538},
    "A2": {"float32_tensor": 0.347, "tf32": 0.116, "bfloat16": 0.058},
    "V1_1": {"float32_tensor": 0.179, "tf32": 0.179, "bfloat16": 0.090},
    "V2_1": {"float32_tensor": 0.717, "tf32": 0.239, "bfloat16": 0.120},
    "V3_2": {"float32_tensor": 1.435, "tf32": 0.478, "bfloat16": 0.239},
}
WINOGRAD4_FLOORS = {"V1_2": 1.884, "V2_2": 0.942, "V3_2": 0.637, "V4_2": 0.498 + 0.010, "V5": 0.159 + 0.010}


@pytest.mark.parametrize("layer", TENSOR_FLOORS)
def test_floors_on_tensor_cores(layer):
    for arithmetic, milliseconds in TENSOR_FLOORS[layer].items():
        found = conv_cost.estimate("implicit_gemm", "conv2d_forward", LAYERS[layer], H200, None, arithmetic)
        assert found.floor / 1e9 == pytest.approx(milliseconds, rel=0.02), arithmetic
        assert found.planned > found.floor and found.bound == ("memory" if layer == "V1_1" else "products")


@pytest.mark.parametrize("layer", WINOGRAD4_FLOORS)
def test_floors_of_winograd4_on_tensor_cores(layer):
    estimates = {
        arithmetic: conv_cost.estimate("winograd4", "conv2d_forward", LAYERS[layer], H200, None, arithmetic)
        for arithmetic in ("float32_tensor", "tf32")
    }
    assert estimates["float32_tensor"].floor / 1e9 == pytest.approx(WINOGRAD4_FLOORS[layer], rel=0.02)
    assert estimates["float32_tensor"] == estimates["tf32"]  # its products are never in tf32


TENSOR_REGIMES = {  # on the H200: (shape, choice in float32_tensor, in tf32, in bfloat16 where transforms are none)
    "first layer": (LAYERS["V1_1"], "direct", "implicit_gemm", "implicit_gemm"),
    "first layer, stride 4": (LAYERS["A1"], "implicit_gemm", "implicit_gemm", "implicit_gemm"),
    "depthwise": (conv(32, 64, 56, 64, 3, 1, 1, groups=64), "direct", "direct", "implicit_gemm"),
    "1x1": (conv(32, 256, 56, 64, 1), "implicit_gemm", "implicit_gemm", "implicit_gemm"),
    "stride 2": (conv(32, 128, 56, 128, 3, 2, 1), "implicit_gemm", "implicit_gemm", "implicit_gemm"),
    "3x3, 128 channels": (LAYERS["V2_2"], "winograd4", "implicit_gemm", "implicit_gemm"),
    "3x3, many channels": (LAYERS["V3_2"], "winograd4", "implicit_gemm", "implicit_gemm"),
    "3x3, 14x14 and a batch": (LAYERS["V5"], "winograd4", "implicit_gemm", "implicit_gemm"),
    "3x3, 13x13, 128 images": (LAYERS["A3"], "winograd4", "implicit_gemm", "implicit_gemm"),
    "3x3, one image": (conv(1, 256, 14, 256, 3, 1, 1), "implicit_gemm", "implicit_gemm", "implicit_gemm"),
    "5x5": (LAYERS["A2"], "fft", "fft", "implicit_gemm"),
    "9x9": (LAYERS["L2"], "fft", "fft", "implicit_gemm"),
}


@pytest.mark.parametrize("regime", TENSOR_REGIMES)
def test_regimes_on_tensor_cores(regime):
    shape, *wanted = TENSOR_REGIMES[regime]
    assert [chosen(shape, arithmetic=name) for name in ("float32_tensor", "tf32")] == wanted[:2]
    assert chosen(shape, arithmetic="bfloat16", names=("implicit_gemm", "im2col")) == wanted[2]


def test_groups_in_bundles():
    """Of ResNeXt-50's first, 4 channels each, sm_90 multiplies 16 in one tile; depthwise stays what it is."""
    groups, depthwise = conv(64, 128, 56, 128, 3, 1, 1, groups=32), conv(64, 128, 56, 128, 3, 1, 1, groups=128)
    names, passes = ("direct", "implicit_gemm"), ("forward", "backward_input", "backward_weight")
    found = [chosen(groups, f"conv2d_{name}", names=names, arithmetic="bfloat16") for name in passes]
    assert found == ["implicit_gemm", "implicit_gemm", "direct"]
    assert chosen(groups, names=names, card=CARDS["A100-80"], arithmetic="bfloat16") == "direct"
    assert chosen(groups, names=names) == chosen(depthwise, names=names, arithmetic="bfloat16") == "direct"


def test_fft_beats_16_bits_for_large_kernels():
    """Spectra are float32, and 31 times fewer products outrun a rate 15 times as high; 7×7 and 5×5 do not."""
    names = ("implicit_gemm", "im2col", "fft")
    found = {
        layer: chosen(LAYERS[layer], arithmetic="bfloat16", names=names) for layer in ("L2", "L3", "L4", "A2", "V4_2")
    }
    assert found == {"L2": "fft", "L3": "fft", "L4": "implicit_gemm", "A2": "implicit_gemm", "V4_2": "implicit_gemm"}


def test_where_tensor_cores_bring_nothing():
    """Of an RTX 3090 tf32 is as fast as float32, and a third of it is what float32_tensor would have; a T4 has none."""
    for arithmetic in ("float32_tensor", "tf32"):
        assert chosen(LAYERS["V3_2"], card=CARDS["RTX 3090"], arithmetic=arithmetic) == "winograd"
    assert conv_cost.arithmetic_of("tf32", card=CARDS["T4"]) == "float32"
    assert conv_cost.arithmetic_of("tf32", "bfloat16", H200) == "bfloat16"


def test_the_precision_in_force_decides():
    shape = LAYERS["V2_1"]
    found = {}
    for name in ("float32", "float32_tensor", "tf32"):
        with gpucnn.precision(name):
            found[name] = ops.choose("conv2d_forward", shape, "sim")
            reason = ops.explain("conv2d_forward", shape, "sim").reason
        assert (f" in {name}," in reason) == (name != "float32")
    assert found == {"float32": "winograd4", "float32_tensor": "winograd4", "tf32": "implicit_gemm"}


def test_the_weights_of_implicit_gemm_are_brought_into_order_first():
    """9.4 MB read and written, and a launch: 4.6 + 3 µs; none for the gradient of 100 channels' weights."""
    shape = conv(1, 512, 14, 512, 3, 1, 1)
    stages = {operation: conv_cost.MODELS["implicit_gemm"](operation, shape, conv_cost.Target(H200, "float32", 4), None)
              for operation in ops.PASSES}  # fmt: skip
    assert all(stages[operation][0].bytes == 8 * 512 * 512 * 9 for operation in ops.PASSES)
    one = conv_cost.Target(H200, "float32", 4)
    assert len(conv_cost.MODELS["implicit_gemm"]("conv2d_backward_weight", conv(1, 100, 14, 64, 3), one, None)) == 1


def test_memory_of_the_card_decides_between_fused_and_staged():
    """Staged forms move 5.5 times the bytes; at 82 operations a byte they lose to the fused one up to h = 232."""
    assert chosen(LAYERS["V3_2"], card=CARDS["RTX 4090"]) == "winograd"
    assert chosen(LAYERS["V3_2"], card=CARDS["A100-80"]) == "winograd4"
    assert chosen(LAYERS["V1_2"], card=CARDS["RTX 3090"]) == "winograd"


@pytest.mark.parametrize(
    "missing", [c for n in (1, 2, 3) for c in itertools.combinations(("winograd", "winograd4", "fft"), n)]
)
def test_the_choice_is_of_what_there_is(missing):
    for shape in LAYERS.values():
        names = [name for name in able(shape) if name not in missing]
        assert chosen(shape, names=names) in names


def test_without_the_transforms_it_is_a_product():
    assert {
        chosen(LAYERS[name], names=("direct", "implicit_gemm", "im2col")) for name in ("L2", "V3_2", "V5", "A2")
    } == {"implicit_gemm"}
    assert chosen(LAYERS["V3_2"], names=("im2col",)) == "im2col"
    assert chosen(LAYERS["V3_2"], names=("something",)) == "something"


sizes = st.integers(1, 40)


@given(
    *(sizes for _ in range(5)), *(st.integers(1, 7) for _ in range(2)), st.integers(1, 3), st.integers(0, 5),
    st.integers(1, 3), st.sampled_from(ops.PASSES), st.sampled_from(sorted(CARDS)), st.sampled_from([None, 0, 10**6]),
)  # fmt: skip
def test_estimates_of_any_shape(N, C, H, W, K, R, S, stride, padding, dilation, operation, card, limit):
    reach = (max(R, S) - 1) * dilation + 1
    shape = ops.conv_shape((N, C, H + reach, W + reach), (K, C, R, S), stride, padding, dilation)
    for algorithm in able(shape):
        found = conv_cost.estimate(algorithm, operation, shape, CARDS[card], limit)
        assert all(isinstance(value, int) for value in found[:4]) and found.bound in ("memory", "l2", "products")
        assert 0 < found.flops and 0 < found.bytes and 0 <= found.floor < found.planned
    name, reason = conv_choice.choose_for_kernels(operation, shape, able(shape), CARDS[card], limit)
    assert name in able(shape) and reason
    assert conv_choice.choose_for_kernels(operation, shape, set(able(shape)), CARDS[card], limit) == (name, reason)


def test_empty_batches_and_large_kernels_have_estimates():
    for operation, algorithm in itertools.product(ops.PASSES, ALL):
        assert conv_cost.estimate(algorithm, operation, LAYERS["V5"]._replace(N=0), H200).planned > 0
    assert conv_cost.estimate("fft", "conv2d_forward", conv(1, 2, 80, 2, 65), H200) is None
    assert conv_cost.estimate("toeplitz", "conv2d_forward", LAYERS["V5"], H200) is None


def test_cards():
    assert cards.named("h200") is cards.named("H200") is cards.SIMULATED
    assert cards.named("rtx4090") is cards.named("RTX-4090") is cards.named("4090") is CARDS["RTX 4090"]
    assert cards.named("a100") is CARDS["A100-80"]
    with pytest.raises(ValueError, match="GPU 'voodoo' is not in the table; it has H200, H100"):
        cards.named("voodoo")
    assert cards.card_of("NVIDIA H100 80GB HBM3", (9, 0)).name == "H100"
    assert cards.card_of("NVIDIA A100-SXM4-80GB", (8, 0)).name == "A100-80"
    assert cards.card_of("Tesla T4", (7, 5)).name == "T4"
    assert cards.card_of("NVIDIA GeForce RTX 3060", (8, 6)).name == "RTX 3090"
    assert cards.card_of("NVIDIA RTX 4000 Ada", (8, 9)).name == "RTX 4090"
    assert cards.card_of("NVIDIA B200", (10, 0)).capability == (9, 0)
    assert cards.card_of("Quadro GV100", (7, 0)).name == "T4"


# The table, and the limit of workspace


@pytest.mark.parametrize("where", ["cpu", "sim"])
def test_every_algorithm_has_every_pass(where):
    rows = [ops.table(operation, where) for operation in ops.PASSES]
    assert list(rows[0]) == list(rows[1]) == list(rows[2])
    for row, shape in itertools.product(rows, (conv(2, 4, 9, 6, 3, 1, 1), conv(2, 4, 9, 4, 3, 2, 1, 1, 4))):
        for name, entry in row.items():
            if entry.supports(shape, FLOAT32, where) is None:
                least = entry.workspace_bytes(shape, FLOAT32, 0)
                assert 0 <= least <= entry.workspace_bytes(shape, FLOAT32), name
                assert entry.workspace_bytes(shape, FLOAT32, least) <= least, name
                assert entry.deterministic


def passes(where, rng, shape):
    """Operation → (function of (algorithm, limit), the answer)."""
    x, w, gy = (rng.integers(-3, 4, size).astype(np.float32) for size in (shape.x, shape.weight, shape.y))
    on = [devices.move(each, where) for each in (x, w, gy)]
    return {
        "conv2d_forward": (
            lambda name, limit: ops.conv2d_forward(on[0], on[1], None, shape, name, workspace_limit=limit),
            ops.conv2d_forward(x, w, None, shape, "direct"),
        ),
        "conv2d_backward_input": (
            lambda name, limit: ops.conv2d_backward_input(on[2], on[1], shape, name, limit),
            ops.conv2d_backward_input(gy, w, shape, "direct"),
        ),
        "conv2d_backward_weight": (
            lambda name, limit: ops.conv2d_backward_weight(on[0], on[2], shape, name, limit),
            ops.conv2d_backward_weight(x, gy, shape, "direct"),
        ),
    }


class Peak:
    """Bytes of arrays that `devices.empty` has made and that are still there, at most at one time."""

    def __init__(self):
        self.now = self.most = 0
        self.empty = devices.empty

    def __call__(self, *arguments):
        array = self.empty(*arguments)
        self.now += array.nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(array, self.freed, array.nbytes)
        return array

    def freed(self, size):
        self.now -= size


@pytest.mark.parametrize("name", ops.KERNEL_ALGORITHMS["conv2d_forward"])
def test_less_workspace_gives_the_same_answer_and_is_kept_to(name, device, monkeypatch, rng):
    """Long sums of few outputs, which are split; under each limit the arrays beside the result stay below it."""
    shape = ops.conv_shape((3, 300, 6, 6), (12, 300, 3, 3), padding=1)
    for operation, (run, want) in passes(device, rng, shape).items():
        entry = ops.KERNEL_ALGORITHMS[operation][name]
        least, usual = (entry.workspace_bytes(shape, FLOAT32, limit) for limit in (0, None))
        assert least < usual or name != "im2col" and (name, operation) != ("implicit_gemm", "conv2d_forward")
        for limit in {least, (2 * least + usual) // 3, usual}:
            assert entry.workspace_bytes(shape, FLOAT32, limit) <= limit
            peak = Peak()
            with monkeypatch.context() as patch:
                patch.setattr(devices, "empty", peak)
                got = run(name, limit)
            assert np.linalg.norm(devices.to_numpy(got) - want) <= 1e-5 * np.linalg.norm(want), (operation, limit)
            assert peak.most - got.nbytes <= limit, (operation, limit)
        if least > 0:
            with pytest.raises(gpucnn.UnsupportedAlgorithm, match=f"'{name}': it needs {least} bytes of workspace, "):
                run(name, least - 1)


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_auto_keeps_to_the_limit(where, device, rng):
    where = device if where == "device" else where
    shape = ops.conv_shape((2, 64, 34, 34), (64, 64, 3, 3), padding=1)
    for operation, (run, want) in passes(where, rng, shape).items():
        for limit in (0, 1 << 16, 1 << 20, 1 << 28):
            name = ops.choose(operation, shape, where, FLOAT32, limit)
            entry = ops.table(operation, where)[name]
            assert entry.workspace_bytes(shape, FLOAT32, limit) <= limit
            assert name in ops.algorithms(operation, shape, FLOAT32, where, limit)
            if where == "cpu":
                assert_equal(run("auto", limit).round(), want)
        assert "toeplitz" not in ops.algorithms(operation, shape, device=where, workspace_limit=1 << 20)


def test_nothing_fits_the_limit():
    depthwise = conv(2, 8, 9, 8, 3, 1, 1, groups=8)
    with pytest.raises(
        gpucnn.UnsupportedAlgorithm, match="no algorithm can compute this: direct: it needs .*limit is 0"
    ):
        ops.choose("conv2d_forward", depthwise, workspace_limit=0)


def test_the_limit_is_an_argument_an_attribute_and_a_setting():
    x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    too_little = "'im2col': it needs .* bytes of workspace, and the limit is 8; these would work: direct"
    layer = nn.Conv2d(3, 4, 3, algorithm="im2col", workspace_limit=8)
    assert repr(layer) == ("Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), algorithm='im2col', workspace_limit=8)")
    calls = (
        lambda **limit: F.conv2d(x, w, algorithm="im2col", **limit),
        lambda **limit: F.conv2d_relu(x, w, algorithm="im2col", **limit),
        lambda **limit: F.conv1d(x[:, :, 0], w[:, :, 0], algorithm="im2col", **limit),
        lambda **limit: F.conv3d(x[:, :, None], w[:, :, None], algorithm="im2col", **limit),
        lambda **limit: F.conv_transpose2d(x, w[:3], algorithm="im2col", **limit),
    )
    for call in calls:
        with pytest.raises(gpucnn.UnsupportedAlgorithm, match=too_little):
            call(workspace_limit=8)
        with gpucnn.workspace_limit(8):
            with pytest.raises(gpucnn.UnsupportedAlgorithm, match=too_little):
                call()
            call(workspace_limit=1 << 30)
        call()
    with pytest.raises(gpucnn.UnsupportedAlgorithm, match=too_little):
        layer(x)
    assert_equal(F.conv2d(x, w, workspace_limit=0), np.full((1, 4, 6, 6), 27))
    leaf = gpucnn.tensor(w, requires_grad=True)
    y = F.conv2d(x, leaf, algorithm="im2col", workspace_limit=10**9)
    with gpucnn.workspace_limit(8):
        y.sum().backward()  # keeps the limit of its forward pass


@pytest.mark.parametrize("limit", [-1, 1.5, "1", True])
def test_limits_that_are_none(limit):
    x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    for call in (
        lambda: F.conv2d(x, w, workspace_limit=limit),
        lambda: nn.Conv2d(3, 4, 3, workspace_limit=limit),
        lambda: gpucnn.workspace_limit(limit),
    ):
        with pytest.raises(
            ValueError, match="workspace_limit is .*; it must be bytes, an integer of at least 0, or None"
        ):
            call()


def test_a_setting_holds_from_the_call_on_and_is_taken_back():
    shape = conv(2, 3, 8, 4, 3)
    assert "im2col" in ops.algorithms("conv2d_forward", shape)
    setting = gpucnn.workspace_limit(8)
    assert "im2col" not in ops.algorithms("conv2d_forward", shape)
    with setting:
        pass
    assert "im2col" in ops.algorithms("conv2d_forward", shape)


def test_algorithms_refuse_an_unknown_pass():
    with pytest.raises(ValueError, match="operation is 'forward'; it must be one of conv2d_forward"):
        ops.algorithms("forward", conv(2, 3, 8, 4, 3))


def test_cpu_choices_have_reasons():
    names = list(ops.ALGORITHMS["conv2d_forward"])
    vgg = conv(8, 64, 56, 64, 3, 1, 1)
    assert "tiles repay" in conv_choice.choose_on_cpu("conv2d_forward", vgg, names).reason
    name, reason = conv_choice.choose_on_cpu("conv2d_forward", vgg, ["direct", "im2col"])
    assert name == "im2col" and "winograd4, which would be first, cannot be used" in reason
    assert conv_choice.choose_on_cpu("conv2d_forward", vgg, ["toeplitz"]).algorithm == "toeplitz"


def test_memory_errors_still_fall_back(device, monkeypatch, rng):
    """Where what auto chose runs out of memory: the least workspace of all, and no more than that."""
    shape = ops.conv_shape((1, 300, 6, 6), (30, 300, 3, 3), padding=1)
    run, want = passes(device, rng, shape)["conv2d_backward_weight"]
    chosen = ops.choose("conv2d_backward_weight", shape, device)
    table, calls = ops.KERNEL_ALGORITHMS["conv2d_backward_weight"], []

    def full(*arguments, workspace_limit):
        raise MemoryError("8 GiB do not fit")

    def only_the_least(x, gy, gw, shape, workspace_limit):
        calls.append(workspace_limit)
        table["direct"].run(x, gy, gw, shape, workspace_limit=workspace_limit)

    entry = table[chosen]
    monkeypatch.setitem(table, chosen, replace(entry, run=full, workspace_bytes=lambda *arguments: 10**6))
    frugal = replace(table["direct"], run=only_the_least)
    monkeypatch.setattr(conv_table, "_least_workspace", lambda *arguments: (frugal, 0))
    assert_same_bits(devices.to_numpy(run("auto", None)), want)
    assert calls == [0]
    with pytest.raises(MemoryError, match="conv2d_backward_weight: 8 GiB do not fit"):
        run(chosen, None)


def test_the_least_workspace_is_that_of_the_smallest_limit():
    shape = ops.conv_shape((64, 3, 224, 224), (64, 3, 3, 3), padding=1)
    entry, least = conv_table._least_workspace("conv2d_backward_weight", shape, FLOAT32, "sim")
    entries = ops.KERNEL_ALGORITHMS["conv2d_backward_weight"].values()
    assert least == min(each.workspace_bytes(shape, FLOAT32, 0) for each in entries)
    assert entry.workspace_bytes(shape, FLOAT32, 0) == least < entry.workspace_bytes(shape, FLOAT32)
