"""Matrix products beside PyTorch, with both operands as they are and with either stored transposed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.bench import layers, oracle, peer, policies, report
from gpucnn.bench.contest import Arena, Candidate, Limits, Problem
from gpucnn.bench.layers import Product
from gpucnn.bench.policies import POLICIES, Policy
from gpucnn.bench.report import Report
from gpucnn.precision import precision

LAYOUTS = ("NN", "NT", "TN")
SIZES = {"cpu": ("1024",), "sim": ("128",)}  # of square products
GPU_SIZES = ("1024", "2048", "4096", "8192")


def products(sizes: list[str], layouts: tuple[str, ...], device: str) -> list[Product]:
    """Products of sizes as in "1024" or "64,4096,576" (M,N,K), or of the device's own, in each layout."""
    chosen = sizes or list(SIZES.get(device.partition(":")[0], GPU_SIZES))
    return [Product(text, *parse_size(text), layout) for text in chosen for layout in layouts]


def parse_size(text: str) -> tuple[int, int, int]:
    """(M, N, K) of "N" or "M,N,K"; raises ValueError for another form."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r} is not N, or M,N,K, whole numbers above 0")
    M, N, K = (int(part) for part in (parts if len(parts) == 3 else 3 * parts))
    return M, N, K


def stored(product: Product) -> dict[str, tuple[int, int]]:
    """The shapes of a and b as they lie in memory."""
    a, b = (product.M, product.K), (product.K, product.N)
    return {"a": a[::-1] if product.layout[0] == "T" else a, "b": b[::-1] if product.layout[1] == "T" else b}


def operands(product: Product, device: str, dtype: str) -> tuple[Any, Any]:
    """a (M,K) and b (K,N); a transposed one is a view of an array stored the other way."""
    arrays = [peer.random(shape, seed, device, dtype) for seed, shape in enumerate(stored(product).values())]
    a, b = (array.T if letter == "T" else array for array, letter in zip(arrays, product.layout, strict=True))
    return a, b


def error(a: Any, b: Any, got: Any) -> float:
    """The largest |got − a·b| / |a|·|b| of some rows and columns; infinite where any element is no number.

    Products of float64, for which gpucnn and NumPy may do the same, are checked in more precision.
    """
    if not bool(np.isfinite(got).all()):
        return float("inf")
    (M, K), N = a.shape, b.shape[1]
    precise: Any
    precise, budget = (np.longdouble, 1 << 22) if got.dtype == np.float64 else (np.float64, oracle.BUDGET)
    rows = max(1, min(M, budget // max(1, K * N)))
    columns = max(1, min(N, budget // max(1, K * rows)))
    random = np.random.default_rng(M)
    row, column = int(random.integers(0, M - rows + 1)), int(random.integers(0, N - columns + 1))
    parts = a[row : row + rows], b[:, column : column + columns], got[row : row + rows, column : column + columns]
    one, other, part = (devices.to_numpy(array).astype(precise) for array in parts)
    return float((abs(part - one @ other) / (abs(one) @ abs(other) + 1e-300)).max())


def multiply(a: Any, b: Any, policy: Policy) -> Any:
    """a·b in gpucnn."""
    with precision(policy.precision):
        return ops.matmul(a, b)


def measure(
    arena: Arena, found: list[Product], policy: Policy = POLICIES["float32"],
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> None:  # fmt: skip
    """A row for each product."""
    for product in progress(found):
        contest(arena, product, policy)
        peer.free_memory(arena.device)


def contest(arena: Arena, product: Product, policy: Policy) -> None:
    """The row of one product."""
    dtype = policy.dtype
    a, b = operands(product, arena.device, dtype)
    flops = 2.0 * product.M * product.N * product.K
    size = (a.size + b.size + product.M * product.N) * policies.dtype_of(dtype).itemsize
    labels = {"suite": "gemm", "layer": product.name, "pass": product.layout, "algorithm": "gemm", "dtype": dtype}
    labels |= {"precision": policy.label, "layout": "row-major"}
    values = {"shape": f"{product.M}x{product.N}x{product.K}", "multiply_adds": int(flops // 2), "bytes": size}
    candidate = Candidate(
        labels,
        lambda: multiply(a, b, policy),
        lambda got: error(a, b, got),
        oracle.limit("gemm", policies.dtype_of(dtype), policy.label),
        values=values,
    )
    threads = arena.report.content["settings"].get("threads", 1)
    spec = {"operation": "matmul", **stored(product), "transposed": [letter == "T" for letter in product.layout]}
    arena.run(Problem({**spec, "dtype": dtype, "layout": "nchw", "threads": threads}, flops, size), [candidate])


def cases(found: Report) -> None:
    """The GPU suite's part."""
    measure(Arena(found, Limits(repeat=5, max_seconds=0.3)), list(layers.products(found.quick)))


if __name__ == "__main__":
    sys.exit(report.main("gemm", cases))
