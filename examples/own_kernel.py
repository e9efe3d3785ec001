"""A CUDA kernel of one's own: run on the simulator, checked for races and bounds, its memory traffic counted.

Run: python examples/own_kernel.py (it needs g++ and no GPU), or python examples/own_kernel.py cuda
"""

import sys
from pathlib import Path

import numpy as np

import gpucnn
from gpucnn import launch
from gpucnn.launch import simulator, sources

SOURCE = Path(__file__).with_name("transpose.cu")


def transpose(kernel: str, x: gpucnn.Tensor) -> gpucnn.Tensor:
    rows, columns = x.shape
    y = gpucnn.tensor(np.zeros((columns, rows), np.float32), device=x.device)
    launch.launch(kernel, (-(-columns // 32), -(-rows // 32)), x.data, y.data, rows, columns)
    return y


def traffic(kernel: str, x: gpucnn.Tensor) -> str:
    """Sectors of 32 bytes, or passes of the banks of shared memory, that each request of a warp takes."""
    with simulator.profiling() as profiles:
        transpose(kernel, x)
    lines = profiles[0][1].lines.values()
    units = {"global": "sectors", "shared": "passes"}
    parts = (f"{c.space} {'write' if c.writes else 'read'} {c.units / c.requests:.1f} {units[c.space]}" for c in lines)
    return ", ".join(sorted(parts))


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "sim"
    x = gpucnn.tensor(np.random.default_rng(0).standard_normal((96, 64), np.float32), device=device)
    for kernel in sources.register(SOURCE):
        assert np.array_equal(transpose(kernel, x).numpy(), x.numpy().T), kernel
        if device == "sim":
            for mode in ("asan", "race"):
                with simulator.configured(mode=mode, order="reverse"):
                    transpose(kernel, x)
        print(f"{kernel}: right;", traffic(kernel, x) if device == "sim" else device)


if __name__ == "__main__":
    main()
