"""Cross-entropy: by hand, against the definition and PyTorch, gradients, extreme scores, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from check import assert_close, assert_equal, assert_relative_l2, assert_same_bits, check_gradients, rounding_bound

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, tensor

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
smoothings = pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
LABELS = np.array([2, 0, 1, 2, 2, 4, 0])


def scores(dtype: type = np.float64) -> np.ndarray:
    return 3 * np.random.default_rng(0).standard_normal((7, 5)).astype(dtype)


def test_by_hand():
    """L = −log(e^{f_y} / Σ e^{f_j}): scores log 1, log 2, log 5 have probabilities 1/8, 2/8, 5/8."""
    x = np.log([[1.0, 2, 5], [1, 2, 5]])
    assert_close(F.cross_entropy(x, [2, 0], reduction="none"), [math.log(8 / 5), math.log(8)], 1e-15)
    assert_close(F.cross_entropy(x, [2, 0]), (math.log(8 / 5) + math.log(8)) / 2, 1e-15)
    assert_close(F.cross_entropy(x, [2, 0], reduction="sum"), math.log(8 / 5) + math.log(8), 1e-15)


def test_gradient_by_hand():
    x = tensor(np.log([[1.0, 2, 5], [1, 2, 5]]), requires_grad=True)
    F.cross_entropy(x, [2, 0]).backward()
    assert_close(x.grad, np.array([[1, 2, 5 - 8], [1 - 8, 2, 5]]) / 16, 1e-15)


def test_label_smoothing_by_hand():
    """Smoothing 0.3 over three classes: targets 0.8, 0.1, 0.1."""
    loss = F.cross_entropy(np.log([[5.0, 2, 1]]), [0], label_smoothing=0.3)
    assert_close(loss, 0.8 * math.log(8 / 5) + 0.1 * math.log(4) + 0.1 * math.log(8), 1e-15)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_equal_scores_cost_the_logarithm_of_the_classes(classes):
    assert_close(F.cross_entropy(np.full((3, classes), 7.0), [0, 1, 1]), math.log(classes), 1e-14)


@smoothings
@dtypes
def test_against_its_definition(label_smoothing, dtype):
    x = scores(dtype)
    losses = F.cross_entropy(x, LABELS, reduction="none", label_smoothing=label_smoothing)
    assert losses.dtype == dtype and losses.shape == (7,)
    assert_close(losses, reference.cross_entropy(x, LABELS, label_smoothing), rounding_bound(10, 20, dtype))


@smoothings
@reductions
def test_gradients(reduction, label_smoothing):
    def function(x):
        return F.cross_entropy(x, LABELS, reduction=reduction, label_smoothing=label_smoothing)

    check_gradients(function, [scores()])


@smoothings
@reductions
@dtypes
def test_as_pytorch(torch, reduction, label_smoothing, dtype):
    x, oracle = tensor(scores(dtype), requires_grad=True), torch.tensor(scores(dtype), requires_grad=True)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    loss = F.cross_entropy(x, LABELS, **options)
    want = torch.nn.functional.cross_entropy(oracle, torch.tensor(LABELS), **options)
    weights = np.arange(1, 8, dtype=dtype) if reduction == "none" else dtype(2)
    loss.backward(weights)
    want.backward(torch.tensor(weights))
    limit = {np.float32: 1e-6, np.float64: 1e-14}[dtype]
    assert_relative_l2(loss, want.detach(), limit)
    assert_relative_l2(x.grad, oracle.grad, limit)


def test_scores_far_apart():
    x = tensor(np.array([[1e4, 0], [0, 1e4]], np.float32), requires_grad=True)
    loss = F.cross_entropy(x, [1, 1], reduction="none")
    assert_equal(loss, [1e4, 0])
    loss.sum().backward()
    assert_equal(x.grad, [[1, -1], [0, 0]])


def test_not_finite_scores_are_not_hidden():
    assert np.isnan(F.cross_entropy(np.array([[np.nan, 0.0]]), [1]))
    assert np.isnan(F.cross_entropy(np.array([[np.inf, 0.0]]), [0]))


def test_kinds_of_labels():
    want = F.cross_entropy(scores(), LABELS)
    for labels in (LABELS.tolist(), LABELS.astype(np.uint8), LABELS.astype(np.int32), tensor(LABELS)):
        assert_same_bits(F.cross_entropy(scores(), labels), want)
    read_only = np.frombuffer(LABELS.tobytes(), np.int64)
    assert_same_bits(F.cross_entropy(tensor(scores()), read_only), want)


def test_tensors_and_arrays():
    loss = F.cross_entropy(tensor(scores(np.float32)), LABELS)
    assert isinstance(loss, gpucnn.Tensor) and loss.shape == () and loss.dtype == np.float32
    assert_same_bits(loss, F.cross_entropy(scores(np.float32), LABELS))


def test_scores_may_be_a_view():
    x = np.asfortranarray(scores())[::-1]
    assert_close(F.cross_entropy(x, LABELS[::-1]), F.cross_entropy(scores(), LABELS), 1e-15)


def test_empty_batch():
    x = tensor(np.zeros((0, 5)), requires_grad=True)
    loss = F.cross_entropy(x, np.zeros(0, int), reduction="sum")
    loss.backward()
    assert (loss.item(), x.grad.shape) == (0, (0, 5))


def test_layer():
    layer = nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)
    want = F.cross_entropy(scores(), LABELS, reduction="sum", label_smoothing=0.1)
    assert_same_bits(layer(scores(), LABELS), want)


def test_l1_and_l2_penalties_from_the_tape():
    """L2 ½λw² and L1 λ|w|, both together, as a user writes them: |w| = √w²."""
    w = tensor(np.array([3.0, -4.0]), requires_grad=True)
    penalty = 0.5 * 0.1 * (w**2).sum() + 0.01 * ((w**2) ** 0.5).sum()
    penalty.backward()
    assert_close(penalty, 0.05 * 25 + 0.01 * 7, 1e-15)
    assert_close(w.grad, [0.3 + 0.01, -0.4 - 0.01], 1e-15)


def test_binary_cross_entropy_from_the_tape():
    """−Σ t log σ(x) + (1−t) log(1 − σ(x)) has the gradient σ(x) − t."""
    x, t = tensor(np.array([0.0, 2.0, -1.0]), requires_grad=True), np.array([1.0, 0.0, 1.0])
    p = F.sigmoid(x)
    (-(t * p.log() + (1 - t) * (1 - p).log())).sum().backward()
    assert_close(x.grad, 1 / (1 + np.exp(-x.data)) - t, 1e-15)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((scores()[0], [1]), {}, ValueError, r"x has shape \(5,\); it must be \(N, classes\)"),
        ((scores(), LABELS[:6]), {}, ValueError, r"labels have shape \(6,\) but x has 7 rows"),
        ((scores(), LABELS[:, None]), {}, ValueError, r"labels have shape \(7, 1\)"),
        ((scores(), LABELS + 1), {}, ValueError, "label 5 is outside 0 to 4; x has 5 classes"),
        ((scores(), LABELS - 1), {}, ValueError, "label -1 is outside 0 to 4"),
        ((scores(), LABELS * 1.0), {}, TypeError, "labels are float64; they must be integers"),
        (
            (scores(), LABELS),
            {"reduction": "max"},
            ValueError,
            "reduction is 'max'; it must be 'mean', 'sum' or 'none'",
        ),
        ((scores(), LABELS), {"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5; it must be from 0 to 1"),
        ((scores()[:0], LABELS[:0]), {}, ValueError, "the mean over an empty batch is undefined"),
        ((scores().astype(int), LABELS), {}, TypeError, "x is int64; it must be float32 or float64"),
        ((scores().tolist(), LABELS), {}, TypeError, "x is list; it must be a Tensor or an array"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match="^cross_entropy: " + message):
        F.cross_entropy(*arguments, **options)
