"""Losses beside cross-entropy: by hand, against PyTorch or their formula, gradients, kinks, extremes, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_gradients

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, tensor

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
LABELS = np.array([2, 0, 1, 2, 2, 4, 0])
SAME = np.array([1, 0, 0, 1, 0, 1, 0])
LIMIT = {np.float32: 1e-6, np.float64: 1e-14}


def normal(seed: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((7, 5)).astype(dtype)


def share(seed: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).random((7, 5)).astype(dtype)


# Losses of two arrays that PyTorch has under the same name: (function, its second argument)
ELEMENTWISE = {
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, share),
    "mse_loss": (F.mse_loss, normal),
    "l1_loss": (F.l1_loss, normal),
    "huber_loss": (F.huber_loss, normal),
}
elementwise = pytest.mark.parametrize("name", ELEMENTWISE)


def contrastive(a: np.ndarray, b: np.ndarray, same: np.ndarray, margin: float) -> np.ndarray:
    """Hadsell et al., equation 4, pair by pair; their Y is 0 for similar pairs."""
    losses = []
    for one, other, alike in zip(a, b, same, strict=True):
        distance, Y = math.dist(one, other), 0 if alike else 1
        losses.append((1 - Y) * distance**2 / 2 + Y * max(0, margin - distance) ** 2 / 2)
    return np.array(losses)


def test_by_hand():
    x, t = np.array([1.0, -2, 5]), np.array([1.0, 0, 2])
    assert_equal(F.mse_loss(x, t, reduction="none"), [0, 4, 9])
    assert_equal(F.l1_loss(x, t, reduction="none"), [0, 2, 3])
    assert_equal(F.huber_loss(x, t, reduction="none"), [0, 1.5, 2.5])
    assert_equal(F.huber_loss(x, t, reduction="none", delta=2.5), [0, 2, 2.5 * (3 - 1.25)])
    assert_close(F.mse_loss(x, t), 13 / 3, 1e-15)
    assert_equal(F.l1_loss(x, t, reduction="sum"), 5)
    p = np.array([1 / 4, 1 / 2, 2 / 3])
    losses = F.binary_cross_entropy_with_logits(np.log(p / (1 - p)), np.array([1, 0, 0.5]), reduction="none")
    assert_close(losses, [math.log(4), math.log(2), (math.log(3 / 2) + math.log(3)) / 2], 1e-15)


def test_hinge_by_hand():
    """CS231n's scores: the cat's hinge is max(0, 5.1 − 3.2 + 1) + max(0, −1.7 − 3.2 + 1) = 2.9; here over 3 classes."""
    x = tensor(np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]]), requires_grad=True)
    losses = F.multi_margin_loss(x, [0, 1, 2], reduction="none")
    assert_close(losses, np.array([2.9, 0, 12.9]) / 3, 1e-15)
    losses.backward([3, 3, 3])
    assert_close(x.grad, [[-1, 1, 0], [0, 0, 0], [1, 1, -2]], 1e-15)


def test_contrastive_by_hand():
    a = tensor(np.array([[3.0, 4], [3, 4], [0.3, 0.4], [1, 1]]), requires_grad=True)
    b = tensor(np.array([[0.0, 0], [0, 0], [0, 0], [1, 1]]), requires_grad=True)
    losses = F.contrastive_loss(a, b, [True, False, False, False], reduction="none")
    assert_close(losses, [12.5, 0, 0.125, 0.5], 1e-15)
    losses.sum().backward()
    want = np.array([[3, 4], [0, 0], [-0.3, -0.4], [0, 0]])  # at distance 0 there is no direction apart
    assert_close(a.grad, want, 1e-15)
    assert_close(b.grad, -want, 1e-15)


def test_gradients_at_the_kinks():
    x = tensor(np.array([0.0, -1, 1, 3]), requires_grad=True)
    F.l1_loss(x, np.array([0.0, 0, 0, 3]), reduction="sum").backward()
    assert_equal(x.grad, [0, -1, 1, 0])
    x = tensor(np.array([[1.0, 0], [0, 0]]), requires_grad=True)
    F.multi_margin_loss(x, [0, 0], reduction="sum").backward()
    assert_equal(x.grad, [[0, 0], [-0.5, 0.5]])  # exactly at the margin: no gradient


@elementwise
@reductions
def test_gradients(name, reduction):
    function, target = ELEMENTWISE[name]
    t = share(1) * 0.8 + 0.1 if target is share else target(1)
    check_gradients(lambda x, t: function(x, t, reduction=reduction), [normal(0), t])


@reductions
def test_gradients_of_hinge_and_contrastive(reduction):
    check_gradients(lambda x: F.multi_margin_loss(x, LABELS, reduction=reduction), [normal(0)])
    a, b = 0.3 * normal(0), 0.3 * normal(1)
    check_gradients(lambda a, b: F.contrastive_loss(a, b, SAME, reduction=reduction), [a, b])


@elementwise
@reductions
@dtypes
def test_as_pytorch(torch, name, reduction, dtype):
    function, target = ELEMENTWISE[name]
    arrays = 3 * normal(0, dtype), target(1, dtype)
    leaves = [tensor(array, requires_grad=True) for array in arrays]
    oracles = [torch.tensor(array, requires_grad=True) for array in arrays]
    loss = function(*leaves, reduction=reduction)
    want = getattr(torch.nn.functional, name)(*oracles, reduction=reduction)
    weights = normal(2, dtype) if reduction == "none" else dtype(2)
    loss.backward(weights)
    want.backward(torch.tensor(weights))
    assert loss.dtype == dtype
    assert_relative_l2(loss, want.detach(), LIMIT[dtype])
    for leaf, oracle in zip(leaves, oracles, strict=True):
        assert leaf.grad.dtype == dtype
        assert_relative_l2(leaf.grad, oracle.grad, LIMIT[dtype])


@pytest.mark.parametrize("delta", [0.1, 2.0])
def test_huber_delta_as_pytorch(torch, delta):
    want = torch.nn.functional.huber_loss(torch.tensor(normal(0)), torch.tensor(normal(1)), delta=delta)
    assert_close(F.huber_loss(normal(0), normal(1), delta=delta), want, 1e-15)


@pytest.mark.parametrize("margin", [1.0, 0.25, 3.0])
@reductions
@dtypes
def test_hinge_as_pytorch(torch, margin, reduction, dtype):
    x, oracle = tensor(normal(0, dtype), requires_grad=True), torch.tensor(normal(0, dtype), requires_grad=True)
    loss = F.multi_margin_loss(x, LABELS, margin=margin, reduction=reduction)
    want = torch.nn.functional.multi_margin_loss(oracle, torch.tensor(LABELS), margin=margin, reduction=reduction)
    weights = np.arange(1, 8, dtype=dtype) if reduction == "none" else dtype(2)
    loss.backward(weights)
    want.backward(torch.tensor(weights))
    assert loss.dtype == x.grad.dtype == dtype
    assert_relative_l2(loss, want.detach(), LIMIT[dtype])
    assert_relative_l2(x.grad, oracle.grad, LIMIT[dtype])


@pytest.mark.parametrize("margin", [1.0, 4.0])
@dtypes
def test_contrastive_against_its_definition(margin, dtype):
    a, b = normal(0, dtype), normal(1, dtype)
    want = contrastive(a, b, SAME, margin)
    losses = F.contrastive_loss(a, b, SAME, margin, reduction="none")
    assert losses.dtype == dtype
    assert_relative_l2(losses, want, LIMIT[dtype])
    assert_relative_l2(F.contrastive_loss(a, b, SAME, margin), want.mean(), LIMIT[dtype])
    assert_relative_l2(F.contrastive_loss(a, b, SAME.astype(bool), margin, reduction="sum"), want.sum(), LIMIT[dtype])


@dtypes
def test_contrastive_as_composed_in_pytorch(torch, dtype):
    arrays = 0.3 * normal(0, dtype), 0.3 * normal(1, dtype)
    a, b = (tensor(array, requires_grad=True) for array in arrays)
    p, q = (torch.tensor(array, requires_grad=True) for array in arrays)
    loss = F.contrastive_loss(a, b, SAME)
    distance, same = (p - q).norm(dim=1), torch.tensor(SAME)
    want = (same * distance**2 / 2 + (1 - same) * (1 - distance).clamp(min=0) ** 2 / 2).mean()
    loss.backward()
    want.backward()
    assert_relative_l2(loss, want.detach(), LIMIT[dtype])
    assert_relative_l2(a.grad, p.grad, LIMIT[dtype])
    assert_relative_l2(b.grad, q.grad, LIMIT[dtype])


def test_binary_scores_far_out():
    x, t = np.array([1e4, -1e4, 1e4, -1e4], np.float32), np.array([1, 0, 0, 1], np.float32)
    leaf = tensor(x, requires_grad=True)
    losses = F.binary_cross_entropy_with_logits(leaf, t, reduction="none")
    assert_equal(losses, [0, 0, 1e4, 1e4])
    losses.sum().backward()
    assert_equal(leaf.grad, [0, 0, 1, -1])


def test_nan_is_not_hidden():
    bad = np.array([[np.nan, 0.0], [1, 0]])
    for function, _ in ELEMENTWISE.values():
        assert np.isnan(function(bad, np.zeros((2, 2))))
    assert np.isnan(F.multi_margin_loss(bad, [0, 1]))
    assert np.isnan(F.multi_margin_loss(bad, [1, 1]))
    assert np.isnan(F.contrastive_loss(bad, np.zeros((2, 2)), [0, 0]))


def test_targets_may_be_tensors_and_x_a_view():
    x, t = np.asfortranarray(normal(0))[::-1], share(1)[::-1]
    for function, _ in ELEMENTWISE.values():
        assert_close(function(tensor(x), tensor(t)), function(normal(0), share(1)), 1e-15)
    assert_equal(F.multi_margin_loss(normal(0), tensor(LABELS)), F.multi_margin_loss(normal(0), LABELS.tolist()))
    a, b = normal(0), tensor(normal(1))
    assert_equal(F.contrastive_loss(a, b, tensor(SAME)), F.contrastive_loss(a, b.data, SAME.tolist()))


def test_tensors_and_arrays():
    x, t = normal(0, np.float32), share(1, np.float32)
    for function, _ in ELEMENTWISE.values():
        loss = function(tensor(x), t)
        assert isinstance(loss, gpucnn.Tensor) and loss.shape == () and loss.dtype == np.float32
        assert_same_bits(loss, function(x, t))
        assert type(function(x, t, reduction="none")) is np.ndarray


def test_empty_batches():
    x = tensor(np.zeros((0, 5)), requires_grad=True)
    for function, _ in ELEMENTWISE.values():
        assert function(x, x.data, reduction="sum").item() == 0
    F.multi_margin_loss(x, LABELS[:0], reduction="sum").backward()
    F.contrastive_loss(x, x, SAME[:0], reduction="sum").backward()
    assert x.grad.shape == (0, 5)


LAYERS = {
    "binary": (nn.BCEWithLogitsLoss(reduction="sum"), F.binary_cross_entropy_with_logits, (normal(0), share(1)), {}),
    "mse": (nn.MSELoss(reduction="sum"), F.mse_loss, (normal(0), normal(1)), {}),
    "l1": (nn.L1Loss(reduction="sum"), F.l1_loss, (normal(0), normal(1)), {}),
    "huber": (nn.HuberLoss(reduction="sum", delta=0.5), F.huber_loss, (normal(0), normal(1)), {"delta": 0.5}),
    "hinge": (nn.MultiMarginLoss(reduction="sum", margin=2), F.multi_margin_loss, (normal(0), LABELS), {"margin": 2}),
    "contrastive": (
        nn.ContrastiveLoss(2, reduction="sum"),
        F.contrastive_loss,
        (normal(0), normal(1), SAME),
        {"margin": 2},
    ),
}


@pytest.mark.parametrize(("layer", "function", "arguments", "options"), LAYERS.values(), ids=LAYERS)
def test_layer_is_its_function(layer, function, arguments, options):
    assert_same_bits(layer(*arguments), function(*arguments, reduction="sum", **options))


@elementwise
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((normal(0), share(1)[:6]), {}, ValueError, r"target has shape \(6, 5\) but x has \(7, 5\)"),
        ((normal(0), share(1)[:, :1]), {}, ValueError, r"target has shape \(7, 1\) but x has \(7, 5\)"),
        ((normal(0), np.ones((7, 5), int)), {}, TypeError, "target is int64; it must be float32 or float64"),
        ((normal(0), share(1, np.float32)), {}, TypeError, "target is float32 but x is float64"),
        ((normal(0), 0.5), {}, TypeError, "target is float; it must be a Tensor or an array"),
        ((normal(0), share(1)), {"reduction": "max"}, ValueError, "reduction is 'max'; it must be 'mean', 'sum' or"),
        ((normal(0)[:0], share(1)[:0]), {}, ValueError, "the mean over an empty batch is undefined"),
    ],
)
def test_errors_of_two_arrays(name, arguments, options, error, message):
    with pytest.raises(error, match=f"^{name}: {message}"):
        ELEMENTWISE[name][0](*arguments, **options)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan])
def test_binary_targets_are_probabilities(wrong):
    with pytest.raises(ValueError, match="^binary_cross_entropy_with_logits: target holds values outside 0 to 1"):
        F.binary_cross_entropy_with_logits(normal(0), np.full((7, 5), wrong))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: F.huber_loss(normal(0), normal(1), delta=0),
            ValueError,
            "huber_loss: delta is 0; it must be positive",
        ),
        (
            lambda: F.multi_margin_loss(normal(0), LABELS + 1),
            ValueError,
            "multi_margin_loss: label 5 is outside 0 to 4",
        ),
        (
            lambda: F.multi_margin_loss(normal(0), LABELS, reduction="all"),
            ValueError,
            "multi_margin_loss: reduction is",
        ),
        (
            lambda: F.multi_margin_loss(normal(0)[:0], LABELS[:0]),
            ValueError,
            "multi_margin_loss: the mean over an empty",
        ),
        (lambda: F.multi_margin_loss(np.ones((7, 5), int), LABELS), TypeError, "multi_margin_loss: x is int64"),
        (
            lambda: F.contrastive_loss(normal(0), normal(1)[:6], SAME),
            ValueError,
            r"a has shape \(7, 5\) and b \(6, 5\)",
        ),
        (lambda: F.contrastive_loss(normal(0)[0], normal(1)[0], 1), ValueError, r"both must be one \(N, features\)"),
        (lambda: F.contrastive_loss(normal(0), normal(1), SAME[:6]), ValueError, r"same has shape \(6,\) but a has 7"),
        (lambda: F.contrastive_loss(normal(0), normal(1), LABELS), ValueError, "same holds other values than 0 and 1"),
        (lambda: F.contrastive_loss(normal(0), normal(1), SAME, 0), ValueError, "margin is 0; it must be positive"),
        (lambda: F.contrastive_loss(normal(0), normal(1), SAME, reduction=""), ValueError, "reduction is ''"),
        (lambda: F.contrastive_loss(normal(0)[:0], normal(1)[:0], []), ValueError, "the mean over an empty batch"),
        (lambda: F.contrastive_loss(normal(0), [1.0], SAME), TypeError, "contrastive_loss: b is list"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
