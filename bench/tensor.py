"""Tensor cores beside PyTorch in every precision: the GPU suite's part for products and convolutions.

A row's reference has its precision: bfloat16 and float16 stand beside PyTorch's in the same type, tf32 beside cuBLAS
and cuDNN with TF32 on, float32_tensor, whose errors are float32's, beside both with TF32 off. Caches are emptied before
each call.
"""

from __future__ import annotations

import sys

from gpucnn.bench import conv, gemm, layers, peer, report
from gpucnn.bench.contest import Arena, Limits
from gpucnn.bench.layers import Product
from gpucnn.bench.policies import POLICIES
from gpucnn.bench.report import Report

PRECISIONS = ("bfloat16", "tf32", "float32_tensor", "float16")  # those that say most first
SUITES = ("vgg16", "resnet50", "alexnet")


def cases(found: Report) -> None:
    """Products, then convolutions; short layers first, so that a cut leaves some of each network."""
    arena = Arena(found, Limits(repeat=5, max_seconds=0.2))
    able = [name for name in PRECISIONS if not leave_out(arena, name)]
    for product in layers.products(found.quick)[: 1 if found.quick else None]:
        for name in able:
            gemm.contest(arena, product, POLICIES[name])
        peer.free_memory(found.device)
    every = [layer for suite in SUITES for layer in layers.SUITES[suite]]
    chosen = (
        layers.QUICK_CONVOLUTIONS[1:] if found.quick else sorted(every, key=lambda layer: layer.shape.multiply_adds)
    )
    for layer in chosen:
        for name in able:
            plan = conv.Plan((layer,), algorithms=("auto",), precision=name)
            case = conv.Case(layer, found.device, plan.policy)
            for pass_ in conv.PASSES:
                for layout in conv.LAYOUTS if not found.quick else ("nhwc",):
                    conv.contest(arena, plan, case, pass_, layout, layer.shape)
            peer.free_memory(found.device)


def leave_out(arena: Arena, name: str) -> bool:
    """Whether the library refuses a precision's arrays, with a row that says why."""
    policy = POLICIES[name]
    a, b = gemm.operands(Product("8", 8, 8, 8, "NN"), arena.device, policy.dtype)
    try:
        gemm.multiply(a, b, policy)
    except TypeError as error:
        labels = {"suite": "gemm", "layer": "all", "pass": "NN", "algorithm": "gemm"}
        row = arena.report.begin(**labels, dtype=policy.dtype, precision=policy.label)
        if row is not None:
            arena.report.finish(row, reason=str(error))
        return True
    return False


if __name__ == "__main__":
    sys.exit(report.main("tensor", cases))
