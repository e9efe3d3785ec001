"""Operators and shape functions: values are NumPy's, gradients agree with differences, dtypes stay."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_close, assert_equal, check_gradients
from hypothesis import given
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import gpucnn
from gpucnn import functional as F
from gpucnn import tensor

OPERATORS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
float_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def positive(*shape: int) -> np.ndarray:
    """Values from 1 to 2: away from the poles of division, logarithm and powers."""
    return 1 + np.random.default_rng(sum(shape) + len(shape)).random(shape)


@operators
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
def test_broadcasting(operator, shapes):
    a, b = (positive(*shape) for shape in shapes.input_shapes)
    result = operator(tensor(a, requires_grad=True), tensor(b, requires_grad=True))
    assert_equal(result, operator(a, b))
    check_gradients(operator, [a, b])


@operators
@float_dtypes
@pytest.mark.parametrize("number", [3, 2.5, True])
def test_python_numbers_on_both_sides(operator, dtype, number):
    x = positive(2, 3).astype(dtype)
    left, right = operator(number, tensor(x)), operator(tensor(x), number)
    assert left.dtype == right.dtype == dtype
    assert_equal(left, operator(dtype(number), x))
    assert_equal(right, operator(x, dtype(number)))
    check_gradients(lambda t: operator(number, t), [x])
    check_gradients(lambda t: operator(t, number), [x])


@operators
def test_numpy_array_on_either_side(operator):
    array, x = positive(2, 3), tensor(positive(3), requires_grad=True)
    left, right = operator(array, x), operator(x, array)
    assert isinstance(left, gpucnn.Tensor) and isinstance(right, gpucnn.Tensor)
    assert_equal(left, operator(array, x.data))
    assert_equal(right, operator(x.data, array))
    left.sum().backward()
    assert x.grad.shape == (3,)


@operators
def test_dtypes_do_not_mix(operator):
    with pytest.raises(TypeError, match="operands are float32 and float64; convert one of them"):
        operator(tensor([1.0]), tensor([1.0], np.float64))


@float_dtypes
@pytest.mark.parametrize(
    "function",
    [
        lambda x: -x,
        lambda x: x**2,
        lambda x: x**-1.5,
        lambda x: x ** np.float64(2),
        lambda x: x.exp(),
        lambda x: x.log(),
        lambda x: x.mean(),
        lambda x: x.mean(axis=0),
        lambda x: x.sum(),
        lambda x: x[0, 1],
        lambda x: x @ x.transpose(0, 1),
        lambda x: F.concatenate([x, x]),
        lambda x: 1 / (2 * x + 1.5) - 3,
    ],
)
def test_dtype_is_kept_forwards_and_backwards(function, dtype):
    x = tensor(positive(2, 3).astype(dtype), requires_grad=True)
    y = function(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == dtype and x.grad.shape == x.shape


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, 0.5, -2.5])
def test_power(exponent):
    x = positive(2, 3)
    assert_equal(tensor(x) ** exponent, x**exponent)
    check_gradients(lambda t: t**exponent, [x])


def test_power_at_zero():
    x = tensor([0.0, 2.0], requires_grad=True)
    (x**2 + x**1 + x**0).sum().backward()
    assert_equal(x.grad, [1, 5])


def test_power_of_a_tensor_is_refused():
    with pytest.raises(TypeError, match=r"power: exponent is Tensor; it must be a number \(use exp"):
        tensor([1.0]) ** tensor([1.0])


@pytest.mark.parametrize("function", [lambda x: -x, lambda x: x.exp(), lambda x: x.log()])
def test_gradients_element_by_element(function):
    check_gradients(function, [positive(3, 4)])


AXES = [None, 0, 1, 2, -1, -3, (0,), (0, 2), (-1, 0), (0, 1, 2)]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_sum_and_mean(name, axis, keepdims):
    x = positive(2, 3, 4)
    want = getattr(x, name)(axis=axis, keepdims=keepdims)
    assert_close(getattr(tensor(x), name)(axis, keepdims), want, 1e-14)
    check_gradients(lambda t: getattr(t, name)(axis=axis, keepdims=keepdims), [x])


def test_mean_of_nothing_is_nan():
    assert np.isnan(tensor(np.zeros((0, 3))).mean().item())


SHAPE_FUNCTIONS = {
    "reshape": (lambda x: x.reshape(4, 6), (4, 6)),
    "reshape_tuple": (lambda x: x.reshape((3, 8)), (3, 8)),
    "reshape_minus_one": (lambda x: x.reshape(2, -1), (2, 12)),
    "flatten": (lambda x: x.flatten(), (2, 12)),
    "flatten_all": (lambda x: x.flatten(0), (24,)),
    "flatten_last": (lambda x: x.flatten(-1), (2, 3, 4)),
    "transpose": (lambda x: x.transpose(0, 2), (4, 3, 2)),
    "transpose_negative": (lambda x: x.transpose(-1, -2), (2, 4, 3)),
    "permute": (lambda x: x.permute(2, 0, 1), (4, 2, 3)),
    "permute_tuple": (lambda x: x.permute((1, 2, 0)), (3, 4, 2)),
    "permute_negative": (lambda x: x.permute(-1, 0, -2), (4, 2, 3)),
}


@pytest.mark.parametrize(("function", "shape"), SHAPE_FUNCTIONS.values(), ids=SHAPE_FUNCTIONS)
def test_shape_functions(function, shape):
    x = np.arange(24.0).reshape(2, 3, 4)
    assert function(tensor(x)).shape == shape
    check_gradients(function, [x])


def test_permute_and_transpose_move_elements_as_numpy_does():
    x = np.arange(24).reshape(2, 3, 4)
    assert_equal(tensor(x).permute(2, 0, 1), x.transpose(2, 0, 1))
    assert_equal(tensor(x).transpose(0, 2), x.swapaxes(0, 2))


@pytest.mark.parametrize("start_dim", [3, -4])
def test_flatten_outside_the_dimensions(start_dim):
    with pytest.raises(ValueError, match=f"{start_dim} is out of bounds"):
        tensor(np.zeros((2, 3, 4))).flatten(start_dim)


KEYS = {
    "integer": 1,
    "negative": -1,
    "slice": slice(0, 2),
    "step": (slice(None), slice(None, None, 2)),
    "reversed": (slice(None), slice(None, None, -1)),
    "mixed": (0, slice(1, 3), -1),
    "ellipsis": (..., 2),
    "new_axis": (None, 1, slice(None), None),
    "integer_array": np.array([1, 0]),
    "repeats": np.array([0, 0, 1, 0]),
    "list": [1, 1],
    "pairs": (np.array([0, 1, 1]), np.array([2, 2, 2])),
    "rows_and_columns": (slice(None), np.array([[0, 2], [2, 1]])),
    "boolean_mask": np.arange(24).reshape(2, 3, 4) % 5 == 0,
    "boolean_rows": np.array([False, True]),
    "nothing": slice(0, 0),
    "everything": (),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_indexing(key):
    x = np.arange(24.0).reshape(2, 3, 4)
    assert_equal(tensor(x)[key], x[key])
    check_gradients(lambda t: t[key], [x])


def test_indexing_with_tensors():
    x = tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    rows, columns = tensor([0, 0, 1]), tensor([1, 1, 2])
    taken = x[rows, columns]
    assert_equal(taken, [1, 1, 5])
    taken.sum().backward()
    assert_equal(x.grad, [[0, 2, 0], [0, 0, 1]])


def test_iteration_and_unpacking():
    first, second = tensor([[1.0, 2.0], [3.0, 4.0]])
    assert_equal(first, [1, 2])
    assert_equal(second, [3, 4])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(axis):
    x, y = positive(2, 3), positive(2, 3) + 1
    assert_equal(gpucnn.concatenate([tensor(x), tensor(y)], axis), np.concatenate([x, y], axis))
    check_gradients(lambda a, b: gpucnn.concatenate([a, b, a], axis=axis), [x, y])


def test_concatenate_unequal_extents():
    check_gradients(lambda a, b: gpucnn.concatenate((a, b)), [positive(1, 2), positive(3, 2)])
    with pytest.raises(ValueError, match="must match exactly"):
        gpucnn.concatenate([tensor([[1.0]]), tensor([[1.0, 2.0]])])
    with pytest.raises(TypeError, match="concatenate: operands are float32 and float64"):
        gpucnn.concatenate([tensor([1.0]), tensor([1.0], np.float64)])


MATMUL_SHAPES = [
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((1, 1), (1, 1)), ((5, 2, 3), (3,)),
    ((3,), (5, 3, 2)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((5, 2, 3), (5, 3, 4)), ((1, 2, 3), (5, 3, 4)),
    ((2, 1, 2, 3), (4, 3, 2)), ((2, 4, 2, 3), (2, 4, 3, 2)), ((2, 4, 2, 3), (4, 3, 2)),
    ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), MATMUL_SHAPES, ids=str)
def test_matmul(a, b):
    rng = np.random.default_rng(1)
    x, y = rng.integers(-8, 9, a).astype(np.float32), rng.integers(-8, 9, b).astype(np.float32)
    assert_equal(tensor(x) @ tensor(y), x.astype(np.float64) @ y.astype(np.float64))
    check_gradients(F.matmul, [x, y])


VIEWS = {
    "transposed": lambda x: x.T,
    "reversed_columns": lambda x: x[::-1].T,
    "reversed_rows": lambda x: x.T[::-1],
    "zero_stride": lambda x: np.broadcast_to(x[:1], x.shape).T,
    "every_second": lambda x: np.repeat(x, 2, axis=1).T[::2],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_matmul_of_views(view):
    x, y = np.arange(12.0).reshape(3, 4), np.arange(15.0).reshape(3, 5)
    assert_equal(F.matmul(view(x), y), view(x) @ y)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), ValueError, r"a has 3 columns but b has 2 rows \(shapes \(2, 3\), "),
        (np.ones((4, 2, 3)), np.ones((5, 3, 2)), ValueError, "leading dimensions of .* do not broadcast"),
        (np.ones(()), np.ones(3), ValueError, "both need at least one dimension"),
        (np.ones((2, 3)), np.ones((3, 2), np.float32), TypeError, "b is float32 but a is float64"),
        (np.ones((2, 3), int), np.ones((3, 2), int), TypeError, "a is int64; it must be float32 or float64"),
        ([[1.0]], np.ones((1, 1)), TypeError, "a is list; it must be a Tensor or an array"),
    ],
)
def test_matmul_errors(a, b, error, message):
    with pytest.raises(error, match="matmul: .*" + message):
        F.matmul(a, b)
