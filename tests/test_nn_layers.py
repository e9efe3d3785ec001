"""Layers: each is one call of its function with its own parameters; what they print and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_close, assert_equal, assert_same_bits

from gpucnn import functional as F
from gpucnn import nn, tensor

X = np.random.default_rng(0).standard_normal((2, 4, 9, 9)).astype(np.float32)


def conv(layer: nn.Conv2d, *options: object) -> np.ndarray:
    return F.conv2d(X, layer.weight, layer.bias, *options)


LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3), lambda layer: conv(layer)),
    "conv_options": (nn.Conv2d(4, 6, (3, 2), 2, 1, 2, 2), lambda layer: conv(layer, 2, 1, 2, 2)),
    "conv_no_bias": (nn.Conv2d(4, 6, 3, bias=False), lambda layer: F.conv2d(X, layer.weight)),
    "conv_direct": (
        nn.Conv2d(4, 6, 3, algorithm="direct"),
        lambda y: F.conv2d(X, y.weight, y.bias, algorithm="direct"),
    ),
    "linear": (nn.Linear(9, 5), lambda layer: F.linear(X, layer.weight, layer.bias)),
    "linear_no_bias": (nn.Linear(9, 5, bias=False), lambda layer: F.linear(X, layer.weight)),
    "max_pool": (nn.MaxPool2d(3, 2, 1, 1, True), lambda _: F.max_pool2d(X, 3, 2, 1, 1, True)),
    "max_pool_default_stride": (nn.MaxPool2d(2), lambda _: F.max_pool2d(X, 2, 2)),
    "avg_pool": (nn.AvgPool2d(3, 2, 1, True, False), lambda _: F.avg_pool2d(X, 3, 2, 1, True, False)),
    "adaptive": (nn.AdaptiveAvgPool2d((2, 3)), lambda _: F.adaptive_avg_pool2d(X, (2, 3))),
    "adaptive_max": (nn.AdaptiveMaxPool2d((2, 3)), lambda _: F.adaptive_max_pool2d(X, (2, 3))),
    "lp_pool": (nn.LPPool2d(4, 3, 2, True), lambda _: F.lp_pool2d(X, 4, 3, 2, True)),
    "l2_pool": (nn.L2Pool2d(3, 2, True), lambda _: F.l2_pool2d(X, 3, 2, True)),
    "l2_pool_channels": (nn.L2PoolChannels(3, 1), lambda _: F.l2_pool_channels(X, 3, 1)),
    "response_norm": (nn.LocalResponseNorm(3, 0.1, 0.5, 2.0), lambda _: F.local_response_norm(X, 3, 0.1, 0.5, 2.0)),
    "relu": (nn.ReLU(), lambda _: F.relu(X)),
    "leaky_relu": (nn.LeakyReLU(0.2), lambda _: F.leaky_relu(X, 0.2)),
    "elu": (nn.ELU(0.5), lambda _: F.elu(X, 0.5)),
    "tanh": (nn.Tanh(), lambda _: F.tanh(X)),
    "sigmoid": (nn.Sigmoid(), lambda _: F.sigmoid(X)),
    "softmax": (nn.Softmax(1), lambda _: F.softmax(X, 1)),
    "log_softmax": (nn.LogSoftmax(), lambda _: F.log_softmax(X, -1)),
    "flatten": (nn.Flatten(), lambda _: X.reshape(2, -1)),
    "dropout_evaluation": (nn.Dropout(0.4).eval(), lambda _: X),
}


@pytest.mark.parametrize(("layer", "function"), LAYERS.values(), ids=LAYERS)
def test_layer_is_its_function(layer, function):
    assert_same_bits(layer(X), function(layer))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(3, 64, 3, padding=1), "Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"),
        (nn.Conv2d(4, 4, 1, 2, 0, 2, 4), "Conv2d(4, 4, kernel_size=(1, 1), stride=(2, 2), dilation=(2, 2), groups=4)"),
        (nn.Conv2d(1, 1, 1, bias=False), "Conv2d(1, 1, kernel_size=(1, 1), stride=(1, 1), bias=False)"),
        (nn.Linear(400, 120), "Linear(400, 120)"),
        (nn.Linear(4, 1, bias=False), "Linear(4, 1, bias=False)"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)"),
        (nn.AvgPool2d(2, padding=1), "AvgPool2d(kernel_size=2, stride=2, padding=1)"),
        (nn.AdaptiveAvgPool2d((7, 7)), "AdaptiveAvgPool2d((7, 7))"),
        (nn.AdaptiveMaxPool2d(1), "AdaptiveMaxPool2d(1)"),
        (nn.MaxUnpool2d(3, 2, 1), "MaxUnpool2d(kernel_size=3, stride=2, padding=1)"),
        (nn.LPPool2d(4, 2), "LPPool2d(norm_type=4, kernel_size=2, stride=2)"),
        (nn.L2Pool2d(3, 2, True), "L2Pool2d(kernel_size=3, stride=2, ceil_mode=True)"),
        (nn.L2PoolChannels(4), "L2PoolChannels(size=4, stride=4)"),
        (nn.LocalResponseNorm(5), "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=1.0)"),
        (nn.BatchNorm2d(64), "BatchNorm2d(64, eps=1e-05, momentum=0.1)"),
        (nn.Dropout(), "Dropout(p=0.5)"),
        (nn.ReLU(), "ReLU()"),
        (nn.LeakyReLU(), "LeakyReLU(negative_slope=0.01)"),
        (nn.ELU(), "ELU(alpha=1.0)"),
        (nn.Softmax(1), "Softmax(axis=1)"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU())),
            "Sequential(\n  (0): Linear(4, 3)\n  (1): Sequential(\n    (0): ReLU()\n  )\n)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


def test_batch_norm_layer():
    layer = nn.BatchNorm2d(4, eps=1e-3, momentum=0.2)
    mean, variance = np.zeros(4, np.float32), np.ones(4, np.float32)
    want = F.batch_norm(X, mean, variance, layer.weight, layer.bias, training=True, momentum=0.2, eps=1e-3)
    assert_same_bits(layer(X), want)
    assert_same_bits(layer.running_mean, mean)
    assert_same_bits(layer.running_var, variance)
    layer(X)
    assert layer.num_batches_tracked == 2
    tracked = layer.running_mean.copy()
    assert_same_bits(layer.eval()(X), F.batch_norm(X, tracked, layer.running_var, layer.weight, layer.bias, eps=1e-3))
    assert_same_bits(layer.running_mean, tracked)
    assert layer.num_batches_tracked == 2


def test_batch_norm_layer_as_pytorch(torch):
    layer, oracle = nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    for _ in range(3):
        layer(X)
        oracle(torch.tensor(X))
    assert list(layer.state_dict()) == list(oracle.state_dict())
    for name, value in oracle.state_dict().items():
        assert_close(layer.state_dict()[name], value, 1e-6)
    assert_close(layer.eval()(X).data, oracle.eval()(torch.tensor(X)).detach(), 1e-5)


def test_dropout_layer():
    layer = nn.Dropout(0.5)
    y = layer(np.ones(1000))
    assert 400 < (y == 0).sum() < 600
    assert_equal(layer.eval()(np.ones(1000)), np.ones(1000))


def test_pooling_layer_with_indices():
    y, indices = nn.MaxPool2d(2, return_indices=True)(tensor(X))
    assert_equal(indices, F.max_pool2d(X, 2, return_indices=True)[1])


def test_unpooling_layer_undoes_its_pooling():
    y, indices = nn.MaxPool2d(2, return_indices=True)(tensor(X))
    back = nn.MaxUnpool2d(2)(y, indices, X.shape)
    assert_same_bits(back, F.max_unpool2d(y.data, indices.data, 2, output_size=(9, 9)))
    assert_same_bits(nn.MaxPool2d(2)(back), np.maximum(y.data, 0))


def test_adaptive_layer_with_indices():
    y, indices = nn.AdaptiveMaxPool2d(2, return_indices=True)(tensor(X))
    assert_equal(indices, F.adaptive_max_pool2d(X, 2, return_indices=True)[1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), r"Conv2d: in_channels \(=3\) must be positive and divisible by groups"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), r"Conv2d: out_channels \(=3\) must be positive and divisible by groups"),
        (lambda: nn.Conv2d(0, 4, 3), r"Conv2d: in_channels \(=0\) must be positive"),
        (lambda: nn.Conv2d(3, 4, 0), "Conv2d: kernel_size is 0; it must be at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), "Conv2d: stride is 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), "Conv2d: padding is -1"),
        (lambda: nn.Linear(0, 3), r"Linear: in_features \(=0\) and out_features \(=3\) must be positive"),
        (lambda: nn.BatchNorm2d(0), r"BatchNorm2d: num_features \(=0\) must be positive"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
