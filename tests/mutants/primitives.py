"""Primitives of Hopper GPUs by themselves."""

from tests.mutants.mutant import Mutant

PRIMITIVES = (
    Mutant(
        "mbarrier_wrong_parity",
        "ptx_barrier.cuh",
        "simulator::barrier_wait(barrier, parity, {__FILE__",
        "simulator::barrier_wait(barrier, parity ^ 1, {__FILE__",
        "test_barrier.py -k test_ring",
    ),
    Mutant(
        "mbarrier_arrival_without_bytes",
        "ptx_barrier.cuh",
        "simulator::barrier_arrive(barrier, bytes, {__FILE__",
        "simulator::barrier_arrive(barrier, 0, {__FILE__",
        "test_barrier.py -k test_boxes_one_after_the_other",
    ),
    Mutant(
        "missing_proxy_fence",
        "ptx_barrier.cuh",
        "    simulator::fence_async();\n",
        "",
        "test_barrier.py -k test_boxes_one_after_the_other",
    ),
    Mutant(
        "tma_wrong_swizzle",
        "ptx_tma.cuh",
        "(offset >> 7 & (BYTES / 16 - 1)) << 4",
        "(offset >> 8 & (BYTES / 16 - 1)) << 4",
        "test_tma.py -k test_through_shared_memory",
    ),
)
