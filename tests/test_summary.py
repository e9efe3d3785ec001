"""Summaries: the lecture's VGG-16 table, published parameter counts, arithmetic by hand, and the memory of a step."""

from __future__ import annotations

import gc
import io
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import gpucnn
from gpucnn import functional as F
from gpucnn import models, nn, optim
from gpucnn.summary import LayerSummary, ModelSummary, format_bytes, print_summary, summarize

LAYER_KEYS = {"name", "type", "output_shape", "activation_values", "weights", "biases", "multiply_adds"}

# (type, output, weights, biases) of the lecture's table; the first row is its INPUT.
VGG16 = [
    ("Input", (3, 224, 224), 0, 0),
    ("Conv2d", (64, 224, 224), 1_728, 64),
    ("Conv2d", (64, 224, 224), 36_864, 64),
    ("MaxPool2d", (64, 112, 112), 0, 0),
    ("Conv2d", (128, 112, 112), 73_728, 128),
    ("Conv2d", (128, 112, 112), 147_456, 128),
    ("MaxPool2d", (128, 56, 56), 0, 0),
    ("Conv2d", (256, 56, 56), 294_912, 256),
    ("Conv2d", (256, 56, 56), 589_824, 256),
    ("Conv2d", (256, 56, 56), 589_824, 256),
    ("MaxPool2d", (256, 28, 28), 0, 0),
    ("Conv2d", (512, 28, 28), 1_179_648, 512),
    ("Conv2d", (512, 28, 28), 2_359_296, 512),
    ("Conv2d", (512, 28, 28), 2_359_296, 512),
    ("MaxPool2d", (512, 14, 14), 0, 0),
    ("Conv2d", (512, 14, 14), 2_359_296, 512),
    ("Conv2d", (512, 14, 14), 2_359_296, 512),
    ("Conv2d", (512, 14, 14), 2_359_296, 512),
    ("MaxPool2d", (512, 7, 7), 0, 0),
    ("Linear", (4096,), 102_760_448, 4_096),
    ("Linear", (4096,), 16_777_216, 4_096),
    ("Linear", (1000,), 4_096_000, 1_000),
]


def summary_of(name: str, batch_size: int = 1, **arguments: Any) -> ModelSummary:
    with nn.init.skipped():
        model = models.create(name, **arguments)
    return summarize(model, batch_size)


def rows(summary: ModelSummary) -> dict[str, LayerSummary]:
    return {layer.name: layer for layer in summary.layers}


def printed(summary: ModelSummary, width: int = 80) -> str:
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.fixture(scope="module")
def vgg16() -> ModelSummary:
    return summary_of("vgg16", batch_size=64)


def test_vgg16_is_the_lectures_table(vgg16: ModelSummary) -> None:
    assert [(layer.type, layer.output_shape, layer.weights, layer.biases) for layer in vgg16.layers] == VGG16
    assert [layer.activation_values for layer in vgg16.layers] == [int(np.prod(shape)) for _, shape, _, _ in VGG16]
    assert vgg16.total_activation_values == 15_237_608
    assert vgg16.total_weights == 138_344_128
    assert vgg16.total_parameters == 138_357_544
    # Σ K·C·9·P·Q over the convolutions, plus the weights of the linear layers
    assert vgg16.total_multiply_adds == 15_346_630_656 + 123_633_664


def test_vgg16_printed(vgg16: ModelSummary) -> None:
    text = printed(vgg16)
    for expected in ("15,237,608", "61.0 MB", "138,344,128", "138,357,544", "102,760,448", "3,211,264", "12.8 MB"):
        assert expected in text
    assert "batches of 64" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["features.0", "Conv2d", "64x224x224", "3,211,264", "12.8", "MB"] == next(
        line[:6] for line in lines if line[:1] == ["features.0"]
    )


def test_json_has_the_promised_keys(vgg16: ModelSummary) -> None:
    record = json.loads(json.dumps(vgg16.to_json()))
    assert record["total_parameters"] == 138_357_544
    assert record["total_multiply_adds"] == 15_470_264_320
    assert record["total_activation_values"] == 15_237_608
    assert all(LAYER_KEYS <= layer.keys() for layer in record["layers"])
    assert record["layers"][1] == {
        "name": "features.0",
        "type": "Conv2d",
        "output_shape": [64, 224, 224],
        "activation_values": 3_211_264,
        "weights": 1_728,
        "biases": 64,
        "multiply_adds": 86_704_128,
        "followed_by": ["ReLU"],
        "note": "",
    }
    assert sum(layer["activation_values"] for layer in record["layers"]) == record["total_activation_values"]
    assert record["peak_training_bytes"] == sum(record["training_memory"].values())
    assert vgg16.to_json() == record  # nothing in it that JSON would change


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("lenet5", {}, 61_706),
        ("lenet5", {"variant": "paper"}, 60_850),
        ("alexnet", {}, 61_100_840),
        ("alexnet", {"variant": "paper"}, 60_965_224),
        ("vgg11_bn", {"image_size": 32}, 132_868_840),
    ],
)
def test_published_parameter_counts(name: str, arguments: dict[str, Any], parameters: int) -> None:
    summary = summary_of(name, **arguments)
    assert summary.total_parameters == parameters
    assert sum(layer.weights + layer.biases for layer in summary.layers) == parameters


def test_lenet_paper_counts_its_own_layers() -> None:
    by_name = rows(summary_of("lenet5", variant="paper"))
    trained = {name: layer.weights + layer.biases for name, layer in by_name.items()}
    assert trained == {
        "input": 0, "c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164, "output": 850,
    }  # fmt: skip
    assert sum(trained.values()) - trained["output"] == 60_000
    # The paper's table of connections: 60 kernels of 5×5 at 10×10 positions; with a bias each, its 151,600 connections.
    assert by_name["c3"].multiply_adds == 60 * 25 * 100
    assert by_name["c3"].multiply_adds + by_name["c3"].biases * 100 == 151_600
    assert by_name["s2"].output_shape == (6, 14, 14)
    assert by_name["s2"].followed_by == ()
    assert by_name["c1"].followed_by == ("ScaledTanh",)


def test_64_filters_on_3_channels() -> None:
    row = summarize(nn.Conv2d(3, 64, 3, padding=1), input_shape=(3, 128, 128)).layers[1]
    assert row.weights + row.biases == 1_792
    assert row.activation_values == 64 * 128 * 128 == 1_048_576
    assert row.name == "Conv2d"


def test_alexnet_notes_the_border_that_its_first_windows_leave_over() -> None:
    by_name = rows(summary_of("alexnet"))
    assert by_name["features.0"].output_shape == (64, 55, 55)  # (224 + 4 − 11) / 4 = 54.25
    assert by_name["features.0"].note == "border: 1 row and 1 column unused"
    assert by_name["features.3"].note == ""
    assert by_name["features.12"].followed_by == ("AdaptiveAvgPool2d", "Dropout")


@pytest.mark.parametrize(
    ("layer", "size", "note"),
    [
        (nn.Conv2d(1, 1, 3, stride=3), (7, 7), "border: 1 row and 1 column unused"),
        (nn.Conv2d(1, 1, 3, stride=2), (7, 7), ""),
        (nn.Conv2d(1, 1, 3, stride=(4, 1), padding=1), (9, 9), ""),
        (nn.Conv2d(1, 1, 2, stride=3, dilation=2), (8, 7), "border: 2 rows and 1 column unused"),
        (nn.MaxPool2d(2), (4, 5), "border: 1 column unused"),
        (nn.MaxPool2d(3, stride=3), (5, 6), "border: 2 rows unused"),
        (nn.MaxPool2d(2, ceil_mode=True), (5, 5), ""),
        (nn.AvgPool2d(2), (5, 4), "border: 1 row unused"),
    ],
)
def test_unused_border(layer: nn.Module, size: tuple[int, int], note: str) -> None:
    assert summarize(layer, input_shape=(1, *size)).layers[1].note == note


def test_notes_are_printed() -> None:
    assert "border: 1 row and 1 column unused" in printed(summary_of("alexnet"))


def test_grouped_convolution_linear_rows_and_batch_norm() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 6, (3, 5), groups=2, bias=False), nn.BatchNorm2d(6))
    _, convolution, norm = summarize(layers, input_shape=(4, 8, 9)).layers
    assert (convolution.weights, convolution.biases) == (6 * 2 * 15, 0)
    assert convolution.multiply_adds == 6 * 2 * 15 * 6 * 5
    assert (norm.weights, norm.biases, norm.activation_values) == (6, 6, 6 * 6 * 5)
    assert norm.multiply_adds == 6 * 6 * 5
    linear = summarize(nn.Linear(5, 7), input_shape=(11, 5)).layers[1]  # at each of 11 positions
    assert linear.multiply_adds == 11 * 5 * 7


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        self.layer = nn.Linear(4, 4)
        self.activation = nn.ReLU()

    def forward(self, x: Any) -> Any:
        return self.layer(self.activation(self.layer(x)))


def test_multiply_adds_of_the_convolutions_relatives() -> None:
    one, three = (
        summarize(layer, input_shape=shape)
        for layer, shape in ((nn.Conv1d(3, 4, 5), (3, 9)), (nn.Conv3d(2, 4, 3), (2, 3, 5, 6)))
    )
    assert one.total_multiply_adds == 4 * 3 * 5 * 5
    assert three.total_multiply_adds == 4 * 2 * 27 * 1 * 3 * 4
    transposed = summarize(nn.ConvTranspose2d(3, 4, 2, 2), input_shape=(3, 5, 6))
    assert transposed.total_multiply_adds == 3 * 4 * 2 * 2 * 5 * 6  # each pixel of x meets each of its weights once
    local = summarize(nn.LocallyConnected2d(1, 100, 10, 200, 10), input_shape=(1, 200, 200))
    assert local.total_multiply_adds == local.total_weights == 4_000_000
    assert local.total_biases == 40_000


def test_shared_layers_show_at_each_use_and_count_once() -> None:
    summary = summarize(Shared(), input_shape=(4,))
    assert [(layer.name, layer.weights, layer.biases) for layer in summary.layers] == [
        ("input", 0, 0), ("layer", 16, 4), ("layer", 16, 4),
    ]  # fmt: skip
    assert summary.layers[2].note == "parameters shared with the first layer"
    assert summary.total_parameters == 20
    assert summary.total_multiply_adds == 32
    assert summary.total_activation_values == 12


class Scaled(nn.Module):
    """A parameter of its own around parts that have parameters too."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(np.ones((3,), np.float32))
        self.inner = nn.Linear(2, 3)

    def forward(self, x: Any) -> Any:
        return self.inner(x) * self.scale


def test_parameters_beside_trained_parts_have_a_row_of_their_own() -> None:
    summary = summarize(Scaled(), input_shape=(2,))
    assert [(layer.name, layer.weights, layer.biases, layer.activation_values) for layer in summary.layers] == [
        ("input", 0, 0, 2), ("inner", 6, 3, 3), ("Scaled", 3, 0, 0),
    ]  # fmt: skip


def test_layers_that_mix_neighbours_are_counted_where_they_keep_the_size() -> None:
    layers = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.LocalResponseNorm(3), nn.AdaptiveAvgPool2d(4))
    summary = summarize(layers, input_shape=(2, 4, 4))
    assert [(layer.type, layer.followed_by) for layer in summary.layers] == [
        ("Input", ()), ("MaxPool2d", ()), ("LocalResponseNorm", ("AdaptiveAvgPool2d",)),
    ]  # fmt: skip
    assert summary.total_activation_values == 3 * 32


def test_the_model_is_left_as_it_was() -> None:
    model = models.create("vgg11_bn", image_size=32, width=0.125, num_classes=10)
    model.features[1].eval()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    random_state = gpucnn.random.default_generator.get_state()
    modes = [module.training for module in model.modules()]
    summarize(model, 8)
    assert gpucnn.random.default_generator.get_state() == random_state
    assert [module.training for module in model.modules()] == modes
    assert not any(module.__dict__.get("_forward_hooks") for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]), name


def test_skipped_initialisation_draws_nothing_and_ends() -> None:
    state = gpucnn.random.default_generator.get_state()
    with nn.init.skipped():
        skipped = models.create("vgg11", image_size=32, width=0.125)
    assert not any(parameter.data.any() for parameter in skipped.parameters())
    assert gpucnn.random.default_generator.get_state() == state
    drawn = models.create("lenet5")
    assert all(parameter.data.any() for parameter in drawn.parameters())
    assert gpucnn.random.default_generator.get_state() != state


def step_of(model: models.Network, batch_size: int) -> Callable[[], None]:
    labels = np.arange(batch_size) % model.arguments["num_classes"]
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        images = gpucnn.Tensor(np.ones((batch_size, *model.input_shape), np.float32))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize(
    ("name", "arguments", "batch_size"),
    [
        ("lenet5", {}, 128),
        ("lenet5", {"variant": "paper"}, 128),
        ("alexnet", {"image_size": 64, "width": 0.25}, 64),
        ("alexnet", {"image_size": 99, "width": 0.25, "variant": "paper"}, 32),
        ("vgg11", {"image_size": 32, "width": 0.25}, 64),
        ("vgg16_bn", {"image_size": 64, "width": 0.125}, 16),
    ],
)
def test_peak_memory_is_within_a_fifth_of_what_a_step_takes(
    name: str, arguments: dict[str, Any], batch_size: int
) -> None:
    model = models.create(name, **arguments)
    estimate = summarize(model, batch_size).peak_training_bytes
    state = sum(array.nbytes for array in model.state_dict().values())  # allocated before the tracing starts
    step = step_of(model, batch_size)
    gc.collect()
    tracemalloc.start()
    try:
        step()  # makes the momentum buffers
        tracemalloc.reset_peak()
        step()
        measured = tracemalloc.get_traced_memory()[1] + state
    finally:
        tracemalloc.stop()
    assert measured / 1.2 <= estimate <= measured * 1.2


def test_memory_of_one_linear_layer_by_hand() -> None:
    memory = summarize(nn.Linear(5, 7), 10, input_shape=(5,)).memory
    parameters = 4 * (5 * 7 + 7)
    assert (memory.weights, memory.gradients, memory.optimizer) == (parameters, parameters, parameters)
    assert memory.activations == 4 * 10 * (5 + 7)
    assert memory.transient == 0  # the scores' gradient takes the scores' place; the images need none
    assert memory.total == 3 * parameters + 4 * 10 * (5 + 7)


def test_frozen_parameters_need_neither_gradients_nor_momentum() -> None:
    model = nn.Sequential(nn.Linear(5, 7).requires_grad_(False), nn.Linear(7, 3))
    summary = summarize(model, input_shape=(5,))
    assert summary.total_parameters == 42 + 24
    assert summary.trainable_parameters == 24
    assert summary.memory.gradients == summary.memory.optimizer == 4 * 24
    assert "42 of them are frozen" in printed(summary)


def test_float64_models_count_eight_bytes() -> None:
    summary = summarize(nn.Linear(5, 7).to("float64"), input_shape=(5,))
    assert summary.value_bytes == 8
    assert summary.memory.weights == 8 * 42


def test_dropout_takes_memory_in_training() -> None:
    plain = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    dropping = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 3))
    activations = [summarize(model, 10, input_shape=(5,)).memory.activations for model in (plain, dropping)]
    assert activations[1] - activations[0] == 4 * 10 * 7


@pytest.mark.parametrize("width", [40, 300])
def test_nothing_is_cut_off_in_narrow_outputs(vgg16: ModelSummary, width: int) -> None:
    text = printed(vgg16, width)
    assert "…" not in text
    assert text.count("\n") == printed(vgg16, 200).count("\n")


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "8"])
def test_wrong_batch_size(batch_size: Any) -> None:
    with pytest.raises(ValueError, match=r"summarize: batch_size is .* must be a positive integer"):
        summarize(nn.Linear(2, 2), batch_size, input_shape=(2,))


def test_missing_input_shape() -> None:
    with pytest.raises(ValueError, match=r"summarize: Linear has no input_shape; pass input_shape=\(C, H, W\)"):
        summarize(nn.Linear(2, 2))


def test_within_no_grad() -> None:
    with gpucnn.no_grad(), pytest.raises(ValueError, match=r"within no_grad\(\)"):
        summarize(nn.Linear(2, 2), input_shape=(2,))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (60_950_432, "61.0 MB"), (999_949_000, "999.9 MB"),
        (999_960_000, "1.0 GB"), (12_345_000_000, "12.3 GB"),
    ],
)  # fmt: skip
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
