"""Matrix products of arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import _C
from gpucnn.ops.shapes import require_float


def matmul(a: Any, b: Any, bias: Any = None) -> np.ndarray:
    """c = a @ b (+ bias on each row) with NumPy's rules: a (…,M,K), b (…,K,N), leading dimensions broadcast.

    Raises TypeError for dtypes that differ or are not float32/float64 and ValueError for shapes that do not fit.
    """
    require_float("matmul", a=a, b=b, bias=bias)
    if min(a.ndim, b.ndim) < 1:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}: both need at least one dimension")
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"matmul: a has {left.shape[-1]} columns but b has {right.shape[-2]} rows (shapes {a.shape}, {b.shape})"
        )
    c = _batched(left, right, bias)
    if a.ndim == 1:
        c = c[..., 0, :]
    return c[..., 0] if b.ndim == 1 else c


def _batched(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """matmul of at least two dimensions: the extension takes one batch dimension."""
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul: leading dimensions of {a.shape} and {b.shape} do not broadcast") from None
    (M, K), N, B = a.shape[-2:], b.shape[-1], math.prod(batch)
    c = np.empty((*batch, M, N), a.dtype)
    if a.shape[:-2] == batch and b.ndim == 2 and a.flags.c_contiguous:
        _C.gemm(a.reshape(1, B * M, K), b[None], c.reshape(1, B * M, N), bias)
        return c
    a3 = np.broadcast_to(a, (*batch, M, K)).reshape(B, M, K)
    b3 = np.broadcast_to(b, (*batch, K, N)).reshape(B, K, N)
    _C.gemm(a3, b3, c.reshape(B, M, N), bias)
    return c


def linear_forward(x: Any, weight: Any, bias: Any) -> np.ndarray:
    """y (…,out) = x (…,in) · weightᵀ (out,in) + bias (out,); raises ValueError or TypeError."""
    require_float("linear", x=x, weight=weight, bias=bias)
    if weight.ndim != 2:
        raise ValueError(f"linear: weight has shape {weight.shape}; it must be (out_features, in_features)")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x has {x.shape[-1] if x.ndim else 'no'} features (shape {x.shape}) but weight expects "
            f"{weight.shape[1]} (weight.shape={weight.shape}); flatten x first, or correct in_features"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"linear: bias has shape {bias.shape}; it must be ({weight.shape[0]},)")
    return matmul(np.ascontiguousarray(x), weight.T, None if bias is None else np.ascontiguousarray(bias))


def linear_backward_weight(x: Any, gy: Any) -> np.ndarray:
    """gw (out,in) = gyᵀ · x, summed over all rows of x (…,in) and gy (…,out)."""
    rows = math.prod(gy.shape[:-1])
    return matmul(gy.reshape(rows, gy.shape[-1]).T, x.reshape(rows, x.shape[-1]))
