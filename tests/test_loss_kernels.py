"""Softmax and cross-entropy by kernels, and every loss on a device: definitions, extreme scores, wrong labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn import ops
from gpucnn.ops.activation import SHORT_ROW
from tests import reference
from tests.check import assert_close, assert_equal, rounding_bound
from tests.kernel_check import assert_sound, assert_two_runs_equal, on

ROWS = st.sampled_from([0, 1, 2, 7, 8, 9])
LENGTHS = st.sampled_from([1, 2, 3, 10, 31, 32, 33, 257, SHORT_ROW, SHORT_ROW + 1])
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
kinds = pytest.mark.parametrize("kind", ["softmax", "log_softmax"])


def scores(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def forward(kind: str, x: Any, axis: int = -1) -> Any:
    return getattr(ops, f"{kind}_forward")(x, axis)


def backward(kind: str, y: Any, gy: Any, axis: int = -1) -> Any:
    return getattr(ops, f"{kind}_backward")(y, gy, axis)


@kinds
@settings(max_examples=40)
@given(rows=ROWS, length=LENGTHS, axis=st.sampled_from([-1, 0, 1]))
def test_softmax_along_any_axis(device, kind, rows, length, axis):
    """The definition in float64; the error of Σ e^x grows with the root of its terms."""
    x = np.moveaxis(scores((rows, length)), -1, axis)
    x = x[:, None] if axis == 1 else x
    axis = -1 if axis == 1 else axis
    gy = scores(x.shape, 1)
    y = forward(kind, on(device, x)[0], axis)
    want = forward(kind, x.astype(np.float64), axis) if x.size else x
    bound = rounding_bound(12 + length**0.5, 1 if kind == "softmax" else 30, np.float32)
    assert_close(devices.to_numpy(y), want, bound)
    gx = backward(kind, y, on(device, gy)[0], axis)
    want = backward(kind, want.astype(np.float64), gy.astype(np.float64), axis)
    size = np.abs(gy).sum(axis=axis, keepdims=True, dtype=np.float64) + np.abs(gy)
    assert_close(devices.to_numpy(gx), want, rounding_bound(60 + length**0.5, size, np.float32))


@kinds
@pytest.mark.parametrize("length", [5, SHORT_ROW + 5])
def test_extreme_rows(device, kind, length):
    x = np.zeros((6, length), np.float32)
    x[0, 2], x[1, 3], x[2], x[3, 1:] = 1e4, np.nan, -np.inf, -np.inf
    x[4, 1], x[5] = np.inf, -1e30
    with np.errstate(invalid="ignore", divide="ignore"):
        want = forward(kind, x.astype(np.float64))
    assert_close_or_both_nan(devices.to_numpy(forward(kind, on(device, x)[0])), want)


def assert_close_or_both_nan(got: np.ndarray, want: np.ndarray) -> None:
    assert_equal(np.isnan(got), np.isnan(want))
    assert_close(np.where(np.isnan(got), 0, got), np.where(np.isnan(want), 0, want), 2e-6)


@smoothings
@settings(max_examples=30)
@given(rows=ROWS, classes=LENGTHS)
def test_cross_entropy_against_its_definition(device, smoothing, rows, classes):
    x, labels = scores((rows, classes)), np.random.default_rng(1).integers(0, classes, rows)
    gy = scores((rows,), 2)
    there, on_labels, rows_gradient = on(device, x, labels, gy)
    losses, kept = ops.cross_entropy_forward(there, on_labels, smoothing)
    bound = rounding_bound(12 + classes**0.5, 30, np.float32)
    assert_close(devices.to_numpy(losses), reference.cross_entropy(x, labels, smoothing) if rows else gy, bound)
    gx = ops.cross_entropy_backward(kept, on_labels, smoothing, rows_gradient)
    target = np.full(x.shape, smoothing / classes)
    target[np.arange(rows), labels] += 1 - smoothing
    want = (reference.softmax(x) - target) * gy[:, None] if rows else x
    assert_close(devices.to_numpy(gx), want, bound * np.abs(gy)[:, None])


@pytest.mark.parametrize("classes", [4, SHORT_ROW * 2])
def test_equal_scores_exactly(device, classes):
    """Equal scores: probabilities are exactly 1 / classes, a power of two, so the gradient is exact."""
    x = gpucnn.tensor(np.full((3, classes), 7, np.float32), device=device, requires_grad=True)
    F.cross_entropy(x, [0, 1, 3], reduction="sum").backward()
    want = np.full((3, classes), 1 / classes)
    want[[0, 1, 2], [0, 1, 3]] -= 1
    assert x.grad is not None
    assert_close(x.grad.numpy(), want, 2e-6 / classes)
    assert_close(F.cross_entropy(x.detach(), [0, 1, 3]).numpy(), math.log(classes), 1e-6 * math.log(classes))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@smoothings
def test_as_on_the_cpu(device, reduction, smoothing):
    values, labels = scores((9, 5)), np.arange(9) % 5
    results = []
    for where in ("cpu", device):
        x = gpucnn.tensor(values, device=where, requires_grad=True)
        loss = F.cross_entropy(x, labels, reduction=reduction, label_smoothing=smoothing)
        loss.backward(np.arange(1, 10, dtype=np.float32) if reduction == "none" else np.float32(2))
        assert x.grad is not None and loss.device == x.device == x.grad.device
        results.append((loss.numpy(), x.grad.numpy()))
    for got, want in zip(results[1], results[0], strict=True):
        assert_close(got, want, 3e-6 * (1 + np.abs(want)))


@pytest.mark.parametrize("classes", [5, SHORT_ROW + 5])
def test_a_wrong_label_on_the_device_is_nan(device, classes):
    """Its own row's loss and gradient, and no other's."""
    x = gpucnn.tensor(scores((4, classes)), device=device, requires_grad=True)
    (labels,) = on(device, np.array([0, -1, classes, classes - 1]))
    losses = F.cross_entropy(x, labels, reduction="none")
    assert_equal(np.isnan(losses.numpy()), [False, True, True, False])
    losses.backward(np.ones(4, np.float32))
    assert x.grad is not None
    assert_equal(np.isnan(x.grad.numpy()).all(axis=1), [False, True, True, False])
    assert_equal(np.isnan(x.grad.numpy()).any(axis=1), [False, True, True, False])


def test_labels(device):
    x = gpucnn.tensor(scores((3, 5)), device=device)
    want = F.cross_entropy(x, [0, 1, 4]).numpy()
    for labels in (np.array([0, 1, 4], np.uint8), *on(device, np.array([0, 1, 4], np.int32))):
        assert_equal(F.cross_entropy(x, labels).numpy(), want)
    with pytest.raises(ValueError, match="cross_entropy: label 5 is outside 0 to 4"):
        F.cross_entropy(x, [0, 1, 5])
    with pytest.raises(TypeError, match="cross_entropy: labels are float32; they must be integers"):
        F.cross_entropy(x, on(device, np.zeros(3, np.float32))[0])
    with pytest.raises(TypeError, match="labels is on .* but x is on cpu; move one of them"):
        F.cross_entropy(gpucnn.tensor(scores((3, 5))), on(device, np.array([0, 1, 4]))[0])


@pytest.mark.parametrize("classes", [5, SHORT_ROW + 5])
def test_the_same_bits_and_no_fault(device, classes):
    x, gy, labels = on(device, scores((9, classes)), scores((9,), 1), np.arange(9) % 5)

    def run() -> tuple[Any, ...]:
        losses, kept = ops.cross_entropy_forward(x, labels, 0.1)
        probabilities, logarithms = ops.softmax_forward(x, 1), ops.log_softmax_forward(x, 1)
        gradients = ops.softmax_backward(probabilities, x, 1), ops.log_softmax_backward(logarithms, x, 1)
        return losses, ops.cross_entropy_backward(kept, labels, 0.1, gy), probabilities, logarithms, *gradients

    assert_two_runs_equal(run, device)
    assert_sound(run, device)


LABELS, SAME = np.array([2, 0, 1, 2]), np.array([1, 0, 0, 1])
LOSSES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "mse": lambda x, y, on: F.mse_loss(x, y),
    "l1": lambda x, y, on: F.l1_loss(x, y, reduction="sum"),
    "huber": lambda x, y, on: F.huber_loss(x, y, delta=0.7),
    "binary": lambda x, y, on: F.binary_cross_entropy_with_logits(x, y),
    "margin": lambda x, y, on: F.multi_margin_loss(x, on(LABELS)),
    "margin_host_labels": lambda x, y, on: F.multi_margin_loss(x, LABELS),
    "contrastive": lambda x, y, on: F.contrastive_loss(x, y, on(SAME), margin=2.0),
    "contrastive_host_labels": lambda x, y, on: F.contrastive_loss(x, y, SAME, margin=2.0),
    "cross_entropy": lambda x, y, on: F.cross_entropy(x, on(LABELS)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_as_on_the_cpu(device, loss):
    results = []
    for where in ("cpu", device):
        x = gpucnn.tensor(scores((4, 3)), device=where, requires_grad=True)
        y = gpucnn.tensor(ops.softmax_forward(scores((4, 3), 1), 1), device=where)
        value = loss(x, y, lambda labels, where=where: devices.move(labels, where))
        value.backward()
        assert x.grad is not None and value.device == x.device == x.grad.device
        results.append((value.numpy(), x.grad.numpy()))
    for got, want in zip(results[1], results[0], strict=True):
        assert_close(got, want, 2e-6 * (1 + np.abs(want)))
