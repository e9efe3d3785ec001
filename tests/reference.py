"""What every function must compute, in float64 NumPy written for reading: one definition each, no tricks for speed.

Gradients follow from the definitions by hand; gy is the gradient of the result, gx of x, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, floor
from typing import Any

import numpy as np


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """How many windows fit: counted, not calculated."""
    reach = dilation * (kernel - 1) + 1
    return len(range(0, size + 2 * padding - reach + 1, stride))


def pad(x: np.ndarray, padding: Any, value: float = 0.0) -> np.ndarray:
    (ph, pw) = pair(padding)
    return np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=value)


def crop(padded: np.ndarray, padding: Any) -> np.ndarray:
    (ph, pw), (H, W) = pair(padding), padded.shape[2:]
    return padded[:, :, ph : H - ph, pw : W - pw]


def taps(
    padded_size: tuple[int, ...], kernel: tuple[int, ...], stride: Any, dilation: Any
) -> Iterator[tuple[int, int, slice, slice]]:
    """(r, s, rows, columns): the padded pixels that kernel element (r, s) meets, one for each output pixel."""
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    P = output_size(padded_size[0], kernel[0], sh, 0, dh)
    Q = output_size(padded_size[1], kernel[1], sw, 0, dw)
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            yield r, s, slice(r * dh, r * dh + sh * (P - 1) + 1, sh), slice(s * dw, s * dw + sw * (Q - 1) + 1, sw)


def conv2d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> np.ndarray:
    """y[n,k,p,q] = bias[k] + Σ_{c,r,s} x[n, c, p·stride + r·dilation − padding, …] · weight[k,c,r,s]."""
    padded, w = pad(x, padding), np.asarray(weight, np.float64)
    K, C = w.shape[0] // groups, w.shape[1]
    parts = []
    for group in range(groups):
        x_part, w_part = padded[:, group * C : (group + 1) * C], w[group * K : (group + 1) * K]
        parts.append(
            sum(
                np.einsum("ncpq,kc->nkpq", x_part[:, :, rows, columns], w_part[:, :, r, s])
                for r, s, rows, columns in taps(padded.shape[2:], w.shape[2:], stride, dilation)
            )
        )
    y = np.concatenate(parts, axis=1)
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None, None]


def conv2d_backward_input(
    gy: Any, weight: Any, x_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> np.ndarray:
    """Each output pixel's gradient goes back to the pixels it was computed from, times their weights."""
    gy, w = np.asarray(gy, np.float64), np.asarray(weight, np.float64)
    K, C = w.shape[0] // groups, w.shape[1]
    padded = pad(np.zeros(x_shape), padding)
    for group in range(groups):
        gy_part, w_part = gy[:, group * K : (group + 1) * K], w[group * K : (group + 1) * K]
        for r, s, rows, columns in taps(padded.shape[2:], w.shape[2:], stride, dilation):
            padded[:, group * C : (group + 1) * C, rows, columns] += np.einsum(
                "nkpq,kc->ncpq", gy_part, w_part[:, :, r, s]
            )
    return crop(padded, padding)


def conv2d_backward_weight(
    x: Any, gy: Any, w_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> np.ndarray:
    """Each weight collects, over all images and output pixels, gradient times the pixel it met."""
    padded, gy = pad(x, padding), np.asarray(gy, np.float64)
    K, C = w_shape[0] // groups, w_shape[1]
    gw = np.zeros(w_shape)
    for group in range(groups):
        x_part, gy_part = padded[:, group * C : (group + 1) * C], gy[:, group * K : (group + 1) * K]
        for r, s, rows, columns in taps(padded.shape[2:], w_shape[2:], stride, dilation):
            gw[group * K : (group + 1) * K, :, r, s] = np.einsum("nkpq,ncpq->kc", gy_part, x_part[:, :, rows, columns])
    return gw


def convolution(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> np.ndarray:
    """conv2d's formula along any number of axes: x (N,C,…), weight (K,C/groups,…)."""
    x, w = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    axes, K, C = x.ndim - 2, w.shape[0] // groups, w.shape[1]
    strides, paddings, dilations = ((v,) * axes if isinstance(v, int) else v for v in (stride, padding, dilation))
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in paddings)))
    outputs = tuple(map(output_size, padded.shape[2:], w.shape[2:], strides, (0,) * axes, dilations))
    y = np.zeros((x.shape[0], w.shape[0], *outputs))
    for tap in np.ndindex(*w.shape[2:]):
        starts = [k * d for k, d in zip(tap, dilations, strict=True)]
        places = tuple(slice(b, b + s * (n - 1) + 1, s) for b, s, n in zip(starts, strides, outputs, strict=True))
        for group in range(groups):
            pixels, weights = padded[:, group * C : (group + 1) * C], w[group * K : (group + 1) * K]
            part = np.einsum("nc...,kc->nk...", pixels[(..., *places)], weights[(..., *tap)])
            y[:, group * K : (group + 1) * K] += part
    return y if bias is None else y + np.asarray(bias, np.float64).reshape(-1, *(1,) * axes)


def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> np.ndarray:
    """Each pixel of x adds its weighted filter to y; then the padding is cut off and output_padding added."""
    x, w = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    (sh, sw), (ph, pw), (dh, dw), (eh, ew) = pair(stride), pair(padding), pair(dilation), pair(output_padding)
    (N, C, H, W), (K, R, S) = x.shape, w.shape[1:]
    whole = np.zeros((N, K * groups, (H - 1) * sh + (R - 1) * dh + 1 + eh, (W - 1) * sw + (S - 1) * dw + 1 + ew))
    for c, i, j, r, s in np.ndindex(C, H, W, R, S):
        first = c // (C // groups) * K
        whole[:, first : first + K, i * sh + r * dh, j * sw + s * dw] += x[:, c, i, j, None] * w[c, :, r, s]
    y = whole[:, :, ph : whole.shape[2] - ph, pw : whole.shape[3] - pw]
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None, None]


def locally_connected2d(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0) -> np.ndarray:
    """Every output pixel has its own filters weight[p,q] (K,C,R,S)."""
    padded, w, (sh, sw) = pad(x, padding), np.asarray(weight, np.float64), pair(stride)
    P, Q, K, _, R, S = w.shape
    y = np.zeros((padded.shape[0], K, P, Q))
    for p, q in np.ndindex(P, Q):
        patch = padded[:, :, p * sh : p * sh + R, q * sw : q * sw + S]
        y[:, :, p, q] = np.einsum("ncrs,kcrs->nk", patch, w[p, q])
    return y if bias is None else y + np.asarray(bias, np.float64)


def pool_output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """With ceil_mode one more window, if it starts inside the image or its left padding."""
    fitting = output_size(size, kernel, stride, padding, dilation)
    reached = (fitting - 1) * stride + dilation * (kernel - 1) + 1
    more = ceil_mode and reached < size + 2 * padding and fitting * stride < size + padding
    return fitting + 1 if more else fitting


def pool_windows(
    H: int, W: int, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> list[list[tuple[list[int], list[int]]]]:
    """windows[p][q] = (rows, columns) of the real pixels in window (p, q)."""
    kernel, stride = pair(kernel), pair(kernel if stride is None else stride)
    padding, dilation = pair(padding), pair(dilation)
    axes = []
    for size, k, s, p, d in zip((H, W), kernel, stride, padding, dilation, strict=True):
        count = pool_output_size(size, k, s, p, d, ceil_mode)
        axes.append([[i for i in range(n * s - p, n * s - p + d * k, d) if 0 <= i < size] for n in range(count)])
    return [[(rows, columns) for columns in axes[1]] for rows in axes[0]]


def max_pool2d(x: Any, *window: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(y, indices h·W + w): pixels in reading order; only a larger one, or the first NaN, replaces."""
    x = np.asarray(x, np.float64)
    N, C, H, W = x.shape
    windows = pool_windows(H, W, *window, **options)
    y = np.full((N, C, len(windows), len(windows[0])), -np.inf)
    indices = np.zeros(y.shape, np.int64)
    for n, c, p, q in np.ndindex(*y.shape):
        rows, columns = windows[p][q]
        candidates = [(x[n, c, i, j], i * W + j) for i in rows for j in columns]
        best = candidates[0]
        for value, place in candidates:
            if value > best[0] or (np.isnan(value) and not np.isnan(best[0])):
                best = (value, place)
        y[n, c, p, q], indices[n, c, p, q] = best
    return y, indices


def max_pool2d_backward(gy: np.ndarray, indices: np.ndarray, x_shape: tuple[int, ...]) -> np.ndarray:
    gx = np.zeros(x_shape)
    for n, c, p, q in np.ndindex(*gy.shape):
        gx[n, c].reshape(-1)[indices[n, c, p, q]] += gy[n, c, p, q]
    return gx


def avg_pool2d_matrix(
    H: int, W: int, kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, include: bool = True
) -> np.ndarray:
    """A (P,Q,H,W): averaging is linear, y[n,c,p,q] = Σ A[p,q,h,w] x[n,c,h,w], and gx is Σ A[p,q,h,w] gy[n,c,p,q].

    The divisor counts padding (include) but not what ceil_mode adds beyond it.
    """
    (kh, kw), (sh, sw), (ph, pw) = pair(kernel), pair(kernel if stride is None else stride), pair(padding)
    windows = pool_windows(H, W, kernel, stride, padding, 1, ceil_mode)
    A = np.zeros((len(windows), len(windows[0]), H, W))
    for p, q in np.ndindex(*A.shape[:2]):
        rows, columns = windows[p][q]
        height = min(p * sh - ph + kh, H + ph) - (p * sh - ph)
        width = min(q * sw - pw + kw, W + pw) - (q * sw - pw)
        A[p, q][np.ix_(rows, columns)] = 1 / (height * width if include else len(rows) * len(columns))
    return A


def adaptive_avg_pool2d_matrix(H: int, W: int, P: int, Q: int) -> np.ndarray:
    """A (P,Q,H,W) as for avg_pool2d_matrix: window p covers rows floor(p·H/P) up to ceil((p+1)·H/P)."""
    A = np.zeros((P, Q, H, W))
    for p, q in np.ndindex(P, Q):
        rows = slice(floor(p * H / P), ceil((p + 1) * H / P))
        columns = slice(floor(q * W / Q), ceil((q + 1) * W / Q))
        A[p, q, rows, columns] = 1 / A[p, q, rows, columns].size
    return A


def local_response_norm(x: Any, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    """y = x / (k + alpha/size · Σ x²)^beta over the channels from c − size//2 to c + (size−1)//2 that exist."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        y[:, c] = x[:, c] / (k + alpha / size * (window**2).sum(axis=1)) ** beta
    return y


def batch_norm(x: Any, mean: Any, variance: Any, weight: Any = 1.0, bias: Any = 0.0, eps: float = 1e-5) -> np.ndarray:
    x = np.asarray(x, np.float64)
    mean, variance, weight, bias = (
        np.broadcast_to(np.asarray(v, np.float64), x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
        for v in (mean, variance, weight, bias)
    )
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def softmax(x: Any, axis: int = -1) -> np.ndarray:
    e = np.exp(np.asarray(x, np.float64) - np.max(x, axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def cross_entropy(x: Any, labels: Any, label_smoothing: float = 0.0) -> np.ndarray:
    """Losses (N,): −Σ_j t_j log softmax(x)_j with t = (1 − s)·one-hot + s/classes."""
    x = np.asarray(x, np.float64)
    target = np.full(x.shape, label_smoothing / x.shape[1])
    target[np.arange(len(x)), labels] += 1 - label_smoothing
    return -(target * np.log(softmax(x))).sum(axis=1)


def linear(x: Any, weight: Any, bias: Any) -> np.ndarray:
    """y[…,o] = Σ_i x[…,i] weight[o,i] + bias[o]."""
    return np.einsum("...i,oi->...o", np.asarray(x, np.float64), np.asarray(weight, np.float64)) + bias
