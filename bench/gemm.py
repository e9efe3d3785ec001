"""Square matrix products beside PyTorch (cuBLAS), with both operands as they are and with either stored transposed."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import ops
from gpucnn.bench import layers, peer, timing
from gpucnn.bench.report import Report, main


def operands(product: layers.Product, device: str) -> tuple[Any, Any]:
    """a (M,K) and b (K,N); a transposed one is a view of an array stored the other way."""
    a_shape, b_shape = (product.M, product.K), (product.K, product.N)
    a = peer.random(a_shape[::-1], 0, device).T if product.layout[0] == "T" else peer.random(a_shape, 0, device)
    b = peer.random(b_shape[::-1], 1, device).T if product.layout[1] == "T" else peer.random(b_shape, 1, device)
    return a, b


def reference(a: Any, b: Any) -> tuple[Any, Any]:
    """(product, sum of magnitudes): float64 on the CPU for the simulator, else PyTorch without TF32."""
    device = devices.of(a)
    if not device.startswith("cuda"):
        pair = [devices.to_numpy(array).astype(np.float64) for array in (a, b)]
        return pair[0] @ pair[1], abs(pair[0]) @ abs(pair[1])
    module = peer.torch(device)
    if module is None:
        raise ValueError("there is no PyTorch with CUDA to check large results against")
    with peer.tf32(module, False):
        product = peer.to_torch(a) @ peer.to_torch(b)
        magnitudes = peer.to_torch(abs(a)) @ peer.to_torch(abs(b))
    return peer.from_torch(product, a), peer.from_torch(magnitudes, a)


def cases(report: Report) -> None:
    """PyTorch with TF32 off and on, then gpucnn, for each product."""
    flush, clock = timing.flusher(report.device), timing.clock_of(report.device)
    module = report.torch
    for product in layers.products(report.quick):

        def measure_torch(tf32: bool, product: layers.Product = product) -> dict[str, Any]:
            a, b = map(peer.to_torch, operands(product, report.device))
            with peer.tf32(module, tf32):
                return columns(timing.measure(lambda: a @ b, clock, report.seconds(0.3), flush), product)

        def measure(product: layers.Product = product) -> dict[str, Any]:
            a, b = operands(product, report.device)
            result = peer.check(ops.matmul(a, b), *reference(a, b))
            found = timing.measure(lambda: ops.matmul(a, b), clock, report.seconds(0.3), flush)
            theirs = report.find(library="torch", tf32=False, **labels_of(product))
            ratio = {"ratio": theirs["ms"] / found.median * 1e-3} if theirs and theirs["ok"] else {}
            return {**result, **columns(found, product), **ratio}

        for tf32 in peer.settings(report.device) if module is not None else ():
            report.add(partial(measure_torch, tf32), library="torch", tf32=tf32, **labels_of(product))
        report.add(measure, library="gpucnn", **labels_of(product))
        peer.free_memory(report.device)


def labels_of(product: layers.Product) -> dict[str, str]:
    return {"size": product.name, "layout": product.layout}


def columns(found: timing.Timing, product: layers.Product) -> dict[str, Any]:
    """Times and rate."""
    return {**found.milliseconds(), "tflops": 2e-12 * product.M * product.N * product.K / found.median}


if __name__ == "__main__":
    sys.exit(main("gemm", cases))
