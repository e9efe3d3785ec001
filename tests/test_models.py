"""Networks: sizes as published, torchvision's names and shapes, arguments, logits as PyTorch's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch_models
from check import assert_relative_l2

import gpucnn
from gpucnn import models, nn, no_grad

PARAMETERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
}
SMALL = {"lenet5": {"width": 0.5}, "alexnet": {"width": 1 / 16, "image_size": 64}}
VGG_SMALL = {"width": 1 / 16, "image_size": 32}
names = pytest.mark.parametrize("name", PARAMETERS)


def create_empty(name: str, **arguments: object) -> models.Network:
    """The network with zeros for weights: large ones are made in no time."""
    with nn.init.skipped():
        return models.create(name, **arguments)


def create_small(name: str, **arguments: object) -> models.Network:
    return models.create(name, **{**SMALL.get(name, VGG_SMALL), **arguments})


def count(model: nn.Module) -> int:
    return sum(parameter.size for parameter in model.parameters())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in model.state_dict().items()}


def test_names():
    assert models.names() == list(PARAMETERS)


@names
def test_parameter_counts(name):
    assert count(create_empty(name)) == PARAMETERS[name]


def test_parameter_count_of_the_papers_alexnet():
    assert count(create_empty("alexnet", variant="paper")) == 60_965_224


def test_weights_of_vgg16():
    """The lecture's table: 138,344,128 weights; the biases make 138,357,544 parameters."""
    weights = [array.size for name, array in create_empty("vgg16").state_dict().items() if name.endswith("weight")]
    assert weights == [
        1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648, *[2_359_296] * 5,
        102_760_448, 16_777_216, 4_096_000,
    ]  # fmt: skip
    assert sum(weights) == 138_344_128


ALEXNET_SHAPES = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (1000, 4096),
    "classifier.6.bias": (1000,),
}
VGG16_CONVOLUTIONS = {
    "features.0": (64, 3, 3, 3),
    "features.2": (64, 64, 3, 3),
    "features.5": (128, 64, 3, 3),
    "features.7": (128, 128, 3, 3),
    "features.10": (256, 128, 3, 3),
    "features.12": (256, 256, 3, 3),
    "features.14": (256, 256, 3, 3),
    "features.17": (512, 256, 3, 3),
    "features.19": (512, 512, 3, 3),
    "features.21": (512, 512, 3, 3),
    "features.24": (512, 512, 3, 3),
    "features.26": (512, 512, 3, 3),
    "features.28": (512, 512, 3, 3),
}
VGG_CLASSIFIER = {"classifier.0": (4096, 25088), "classifier.3": (4096, 4096), "classifier.6": (1000, 4096)}
VGG16_BN_POSITIONS = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]  # of the convolutions; their norms come next
BATCH_NORM_NAMES = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def with_biases(layers: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    named = [(f"{name}.weight", shape, f"{name}.bias", shape[:1]) for name, shape in layers.items()]
    return {key: shape for entry in named for key, shape in (entry[:2], entry[2:])}


def test_torchvisions_names_and_shapes_alexnet():
    assert list(shapes(create_empty("alexnet")).items()) == list(ALEXNET_SHAPES.items())


def test_torchvisions_names_and_shapes_vgg16():
    want = with_biases(VGG16_CONVOLUTIONS | VGG_CLASSIFIER)
    assert list(shapes(create_empty("vgg16")).items()) == list(want.items())


def test_torchvisions_names_and_shapes_vgg16_bn():
    want = {}
    for position, shape in zip(VGG16_BN_POSITIONS, VGG16_CONVOLUTIONS.values(), strict=True):
        want |= with_biases({f"features.{position}": shape})
        want |= {f"features.{position + 1}.{name}": shape[:1] for name in BATCH_NORM_NAMES[:4]}
        want |= {f"features.{position + 1}.num_batches_tracked": ()}
    want |= with_biases(VGG_CLASSIFIER)
    assert list(shapes(create_empty("vgg16_bn")).items()) == list(want.items())


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_logits_as_pytorch(torch, name):
    """Full size, He-initialised weights, biases that are not zero, two images."""
    model = create_empty(name)
    weights = torch_models.he_weights(shapes(model))
    model.load_state_dict(weights)
    with torch.device("meta"):
        oracle = torch_models.alexnet(torch) if name == "alexnet" else torch_models.vgg(torch, name)
    oracle.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()}, assign=True)
    images = np.random.default_rng(5).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with no_grad(), torch.no_grad():
        logits, want = model.eval()(images), oracle.eval()(torch.from_numpy(images)).numpy()
    assert logits.shape == (2, 1000)
    assert_relative_l2(logits, want, 1e-5)
    assert np.linalg.norm(want[0] - want[1]) > 1e-2 * np.linalg.norm(want[0])  # the images matter


@names
@pytest.mark.parametrize("arguments", [{}, {"num_classes": 3, "in_channels": 1}, {"in_channels": 2}], ids=str)
def test_forward_and_backward(name, arguments):
    model = create_small(name, **arguments)
    images = np.random.default_rng(0).standard_normal((2, *model.input_shape)).astype(np.float32)
    logits = model(images)
    assert logits.shape == (2, model.arguments["num_classes"])
    logits.sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


@names
def test_a_network_can_be_built_again_from_its_arguments(name):
    model = create_small(name, num_classes=4, in_channels=2)
    again = models.create(model.name, **json.loads(json.dumps(model.arguments)))
    assert again.arguments == model.arguments and again.input_shape == model.input_shape
    assert shapes(again) == shapes(model)


def test_papers_variants_can_be_built_again():
    for model in (models.lenet5(variant="paper"), models.alexnet(variant="paper", width=1 / 32, image_size=67)):
        again = models.create(model.name, **json.loads(json.dumps(model.arguments)))
        assert shapes(again) == shapes(model)


@pytest.mark.parametrize(
    ("name", "shape"), [("lenet5", (1, 28, 28)), ("alexnet", (3, 224, 224)), ("vgg16_bn", (3, 224, 224))]
)
def test_input_shapes(name, shape):
    model = create_empty(name, width=1 / 32)
    assert model.input_shape == shape and model.name == name


SMALLEST = [("lenet5", {}, 16), ("lenet5", {"variant": "paper"}, 16), ("alexnet", {}, 63), ("vgg11", {}, 32)]


@pytest.mark.parametrize(("name", "arguments", "size"), [*SMALLEST, ("alexnet", {"variant": "paper"}, 67)], ids=str)
def test_smallest_images(name, arguments, size):
    arguments = arguments | ({} if name == "lenet5" else {"width": 1 / 32})
    model = models.create(name, image_size=size, **arguments)
    assert model(np.zeros((1, *model.input_shape), np.float32)).shape == (1, model.arguments["num_classes"])
    with pytest.raises(ValueError, match=f"{name}: image_size is {size - 1}; it must be at least {size}, or no pixel"):
        models.create(name, image_size=size - 1, **arguments)


@pytest.mark.parametrize(
    ("name", "size", "pixels"),
    [
        ("alexnet", 224, 6),  # 55, 27, 13, 6
        ("alexnet", 100, 2),  # 24, 11, 5, 2: borders that no window reaches are left out
        ("vgg11", 70, 2),  # 35, 17, 8, 4, 2
    ],
)
def test_pixels_before_the_classifier(name, size, pixels):
    model = create_small(name, image_size=size)
    assert model.features(np.zeros((1, 3, size, size), np.float32)).shape[2:] == (pixels, pixels)


@pytest.mark.parametrize("size", [16, 17, 28, 32, 33, 64])
def test_other_image_sizes(size):
    model = models.lenet5(image_size=size)
    assert model(np.zeros((1, 1, size, size), np.float32)).shape == (1, 10)


def test_bits_do_not_depend_on_the_number_of_threads():
    threads, found = gpucnn.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            gpucnn.set_num_threads(count)
            gpucnn.manual_seed(0)
            model = create_small("vgg11_bn")
            images = np.random.default_rng(0).standard_normal((5, *model.input_shape)).astype(np.float32)
            model(images).sum().backward()
            found.append([parameter.grad.data.tobytes() for parameter in model.parameters()])
    finally:
        gpucnn.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_same_seed_same_weights():
    gpucnn.manual_seed(9)
    first = create_small("vgg11_bn").state_dict()
    gpucnn.manual_seed(9)
    assert all(
        array.tobytes() == first[name].tobytes() for name, array in create_small("vgg11_bn").state_dict().items()
    )


def test_printed_network():
    assert str(models.lenet5()) == (
        "LeNet5(\n"
        "  (features): Sequential(\n"
        "    (0): Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))\n"
        "    (1): ReLU()\n"
        "    (2): MaxPool2d(kernel_size=2, stride=2)\n"
        "    (3): Conv2d(6, 16, kernel_size=(5, 5), stride=(1, 1))\n"
        "    (4): ReLU()\n"
        "    (5): MaxPool2d(kernel_size=2, stride=2)\n"
        "  )\n"
        "  (classifier): Sequential(\n"
        "    (0): Flatten()\n"
        "    (1): Linear(400, 120)\n"
        "    (2): ReLU()\n"
        "    (3): Linear(120, 84)\n"
        "    (4): ReLU()\n"
        "    (5): Linear(84, 10)\n"
        "  )\n"
        ")"
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg17", {}, "model 'vgg17' is unknown; use one of lenet5, alexnet, vgg11"),
        ("lenet5", {"classes": 3}, "lenet5 has no argument 'classes'; it takes num_classes, in_channels"),
        ("lenet5", {"num_classes": 0}, "lenet5: num_classes is 0; it must be a positive integer"),
        ("lenet5", {"in_channels": 1.5}, "lenet5: in_channels is 1.5; it must be a positive integer"),
        ("lenet5", {"image_size": True}, "lenet5: image_size is True; it must be a positive integer"),
        ("lenet5", {"width": 0}, "lenet5: width is 0; it must be above 0 and at most 16"),
        ("lenet5", {"width": float("nan")}, "lenet5: width is nan"),
        ("lenet5", {"variant": "old"}, "lenet5: variant is 'old'; it must be one of 'modern', 'paper'"),
        ("lenet5", {"variant": "paper", "width": 2.0}, "lenet5: width is 2.0 but variant 'paper' has the paper's"),
        ("alexnet", {"dropout": 1}, "alexnet: dropout is 1; it must be at least 0 and below 1"),
        ("alexnet", {"variant": "old"}, "alexnet: variant is 'old'; it must be one of 'torchvision', 'paper'"),
        ("vgg16", {"dropout": -0.5}, "vgg16: dropout is -0.5"),
    ],
)
def test_errors(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **arguments)
