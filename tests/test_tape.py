"""The tape: graphs of any shape, accumulation, what is recorded, kept and freed."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
from check import assert_equal, check_gradients

import gpucnn
from gpucnn import functional as F
from gpucnn import no_grad, tensor
from gpucnn.tensor import Function


def leaf(*values: float, dtype: type = np.float64) -> gpucnn.Tensor:
    return tensor(np.array(values, dtype), requires_grad=True)


def scalar(value: float) -> gpucnn.Tensor:
    return tensor(value, np.float64, requires_grad=True)


def test_lecture_example():
    x, y, z = scalar(-2), scalar(5), scalar(-4)
    q = x + y
    f = z * q
    f.backward()
    assert (q.item(), f.item()) == (3, -12)
    assert (x.grad.item(), y.grad.item(), z.grad.item()) == (-4, -4, 3)


def test_diamond():
    x = scalar(3)
    a = x * 2
    (a * x + a + x).backward()  # 2x² + 3x
    assert x.grad.item() == 4 * 3 + 3


def test_same_tensor_twice_in_one_function():
    x = scalar(5)
    (x * x).backward()
    assert x.grad.item() == 10
    y = x * 1
    (y - y).backward()
    assert x.grad.item() == 10


def test_shared_weight_adds_gradients():
    weight, x = leaf(2.0, 3.0), tensor([5.0, 7.0], np.float64)
    ((x * weight) * weight).sum().backward()  # Σ x·w², gradient 2·x·w
    assert_equal(weight.grad, [20, 42])


def test_many_ways_to_one_tensor_are_walked_once():
    """60 doublings: 2^60 paths from the result to x; each function must run once."""
    x = scalar(1)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60


def test_several_heads():
    x = leaf(1.0, 2.0)
    trunk = x * 3
    first, second = trunk.sum(), (trunk * trunk).sum()
    first.backward(retain_graph=True)
    assert_equal(x.grad, [3, 3])
    second.backward()
    assert_equal(x.grad, [3 + 18, 3 + 36])


def test_input_is_a_leaf_that_can_be_optimised():
    image, target = leaf(4.0, -4.0), np.array([1.0, 2.0])
    for _ in range(60):
        image.grad = None
        ((image - target) ** 2).sum().backward()
        image.data -= 0.25 * image.grad.data
    assert_equal(image, target)


def test_gradients_accumulate():
    x = leaf(1.0, 2.0)
    (x * 2).sum().backward()
    before = x.grad
    (x * 3).sum().backward()
    assert_equal(x.grad, [5, 5])
    assert_equal(before, [2, 2])  # what a caller held has not changed


def test_backward_of_a_leaf():
    x, gradient = leaf(1.0, 2.0), np.array([3.0, 4.0])
    x.backward(gradient)
    assert_equal(x.grad, [3, 4])
    assert not np.shares_memory(x.grad.data, gradient)


def test_gradient_argument():
    x = leaf(1.0, 2.0, 3.0)
    (x * x).backward([1, 10, 100])
    assert_equal(x.grad, [2, 40, 600])
    (x * 1).backward(tensor([1, 1, 1]))
    assert_equal(x.grad, [3, 41, 601])


def test_no_gradient_reaches_what_does_not_require_it():
    x, constant = leaf(1.0), tensor([2.0], np.float64)
    (x * constant + x.detach()).sum().backward()
    assert_equal(x.grad, [2])
    assert constant.grad is None


def test_function_of_constants_is_not_recorded():
    y = tensor([1.0]) * tensor([2.0])
    assert not y.requires_grad and y.is_leaf


def test_no_aliasing_between_gradients():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    gradient = np.array([1.0, 1.0])
    (x + y).backward(gradient)
    memories = [x.grad.data, y.grad.data, gradient]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(memories) for b in memories[:i])


@pytest.mark.parametrize("function", [lambda x: x.reshape(2, 2), lambda x: x[:], lambda x: x.reshape(4).flatten(0)])
def test_gradient_of_a_view_is_not_the_callers_array(function):
    x = leaf(1.0, 2.0, 3.0, 4.0)
    y = function(x)
    gradient = np.ones(y.shape)
    y.backward(gradient)
    assert not np.shares_memory(x.grad.data, gradient)
    assert x.grad.data.flags.writeable


def test_deep_graph_without_recursion():
    x = scalar(0)
    y = x
    for _ in range(5000):
        y = y + 1
    y.backward()
    assert (y.item(), x.grad.item()) == (5000, 1)


def test_deep_graph_can_be_thrown_away():
    y = scalar(0)
    for _ in range(30_000):
        y = y + 1
    del y


def test_second_backward_is_refused():
    x = scalar(2)
    y = x * x
    y.backward()
    with pytest.raises(ValueError, match=r"graph was already used .* retain_graph=True"):
        y.backward()
    assert x.grad.item() == 4


def test_retain_graph():
    x = scalar(2)
    y = x * x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 24


def test_memory_is_freed_by_backward():
    x = tensor(np.ones(1000), requires_grad=True)
    middle = x * 2
    total = (middle * middle).sum()
    kept = weakref.ref(middle.data)
    del middle
    assert kept() is not None
    total.backward()
    assert kept() is None, "the array that backward needed is still alive after it"


def test_nothing_is_kept_without_grad():
    x = tensor(np.ones(1000), requires_grad=True)
    with no_grad():
        middle = x * 2
        total = (middle * middle).sum()
    kept = weakref.ref(middle.data)
    del middle
    assert kept() is None
    assert not total.requires_grad


def test_no_grad_restores_itself_after_an_error():
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (scalar(1) * 1).requires_grad


def test_no_grad_nests_and_decorates():
    @no_grad()
    def evaluate() -> gpucnn.Tensor:
        with no_grad():
            pass
        return scalar(1) * 2

    assert not evaluate().requires_grad
    assert not evaluate().requires_grad
    assert (scalar(1) * 2).requires_grad


def test_no_grad_belongs_to_its_thread():
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((scalar(1) * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_gradients_of_a_whole_graph():
    def graph(a, b):
        hidden = (a @ b).exp() / (1 + b.sum())
        return F.concatenate([hidden * a, a.transpose(0, 1) - hidden.mean(axis=0)], axis=0)

    rng = np.random.default_rng(0)
    check_gradients(graph, [rng.random((3, 3)), rng.random((3, 3))])


def test_what_no_backward_reads_is_freed_in_the_forward_pass():
    x = gpucnn.tensor(np.ones((4, 4), np.float32), requires_grad=True)
    doubled = x * 2.0  # relu keeps its output, not its input
    array = weakref.ref(doubled.data)
    y = F.relu(doubled)
    del doubled
    assert array() is None
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, np.full((4, 4), 2, np.float32))


def test_backward_with_a_wrong_shape_names_the_function():
    class Wrong(Function):
        def forward(self, x):
            return x[:1]

        def backward(self, gradient):
            return (gradient,)

    y = Wrong()(gpucnn.tensor([1.0, 2.0], requires_grad=True))
    with pytest.raises(ValueError, match=r"Wrong.backward: a gradient has shape \(1,\), its input \(2,\)"):
        y.backward()
