"""Tensor: what it holds, what it refuses, and its way to and from arrays of NumPy and others."""

from __future__ import annotations

import numpy as np
import pytest
from check import assert_equal

import gpucnn
from gpucnn import functional as F
from gpucnn import tensor


def doubled() -> gpucnn.Tensor:
    return tensor([1.0, 2.0], requires_grad=True) * 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: doubled().backward(), ValueError, r"shape \(2,\) needs gradient="),
        (lambda: doubled().backward([1, 2, 3]), ValueError, r"shape \(3,\) but the Tensor has \(2,\)"),
        (lambda: tensor([1.0]).backward(), ValueError, "requires_grad=True"),
        (lambda: tensor([1, 2], requires_grad=True), TypeError, "needs a floating-point dtype, not int64"),
        (lambda: tensor(["a"]), TypeError, "dtype <U1 is not supported"),
        (lambda: tensor([1.0], "float8"), TypeError, "dtype 'float8' is not supported"),
        (lambda: tensor([1j]), TypeError, "dtype complex128 is not supported"),
        (lambda: tensor([1.0], device="cuda"), ValueError, "device 'cuda': .* use 'cpu', 'sim' or 'auto'"),
        (lambda: tensor([1.0], device="tpu"), ValueError, "device 'tpu' is unknown"),
        (lambda: tensor([1.0, 2.0]).item(), ValueError, r"item: the Tensor has 2 elements \(shape \(2,\)\)"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_dtypes():
    assert tensor([1.0, 2.0]).dtype == tensor(3.5).dtype == np.float32
    assert tensor([1.0], np.float64).dtype == tensor(np.array([1.0])).dtype == np.float64
    assert tensor([1, 2]).dtype == np.int64
    assert tensor([True]).dtype == bool


def test_tensor_copies_into_rows():
    array = np.arange(6.0).reshape(2, 3).T
    x = tensor(array)
    assert not np.shares_memory(x.data, array)
    assert x.data.flags.c_contiguous
    assert_equal(x, array)


def test_attributes():
    x = tensor(np.zeros((2, 3, 4), np.float32))
    assert (x.shape, x.ndim, x.size, len(x), x.device) == ((2, 3, 4), 3, 24, 2, "cpu")
    assert x.to("cpu") is x and x.to("auto") is x and x.to(np.float32) is x
    assert x.to("float64").dtype == np.float64
    assert x.numpy() is x.data


def test_item_is_a_python_number():
    assert type(tensor(1.5).item()) is float
    assert type(tensor([[7]]).item()) is int


def test_repr():
    assert repr(tensor([[1.0, 2.5]])) == "tensor([[1. , 2.5]], dtype=float32)"
    assert repr(tensor([1.0], np.float64, requires_grad=True)) == "tensor([1.], dtype=float64, requires_grad=True)"


def test_numpy_takes_tensors():
    x = tensor([1.0, 2.0])
    assert np.asarray(x) is x.data
    assert np.array(x).dtype == np.float32
    assert not np.shares_memory(np.array(x), x.data)
    assert np.asarray(x, np.float64).dtype == np.float64


def test_dlpack_both_ways():
    x = tensor([1.0, 2.0, 3.0])
    array = np.from_dlpack(x)
    assert np.shares_memory(array, x.data)

    class OnlyDLPack:
        """An array of another library that has no __array__."""

        def __dlpack__(self, **options):
            return x.data.__dlpack__(**options)

        def __dlpack_device__(self):
            return x.data.__dlpack_device__()

    assert_equal(tensor(OnlyDLPack()), [1, 2, 3])


def test_torch_both_ways(torch):
    x = tensor([[1.0, 2.0], [3.0, 4.0]])
    shared = torch.from_dlpack(x)
    shared[0, 0] = 9
    assert x.data[0, 0] == 9
    assert_equal(tensor(shared), [[9, 2], [3, 4]])
    assert tensor(shared).dtype == np.float32


def test_plain_arrays_in_and_out():
    a, b = np.ones((2, 3)), np.ones((3, 2))
    assert type(F.add(a, 1)) is type(F.matmul(a, b)) is type(F.concatenate([a, a])) is np.ndarray
    assert isinstance(F.matmul(a, tensor(b)), gpucnn.Tensor)
