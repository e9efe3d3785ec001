"""Golden maps of TMA: what lies in shared memory after the load of a box, and in an array after a store.

The programs are in tests/kernels/golden_tma.cu. They need sm_90; `python -m gpucnn.bench.golden` records them there.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16

from gpucnn import device as devices
from gpucnn.launch import launch, tensor_map
from gpucnn.launch.tensor_map import TensorMap

SENTINEL = 0xA5  # of shared memory before a load
MARGIN = 256  # bytes of it after the box


class Case(NamedTuple):
    """A copy: the array, what its map is made with, and the instruction's coordinates.

    - kind: a function of gpucnn.launch.tensor_map: "tiled", "im2col" or "im2col_backward"
    - place: where the box starts in shared memory
    - content: what a store writes, bytes; a load has none
    """

    kind: str
    array: np.ndarray
    options: dict[str, Any]
    at: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    place: int = 0
    content: np.ndarray | None = None


def map_of(case: Case, array: Any) -> TensorMap:
    """The case's map of an array like its own."""
    return getattr(tensor_map, case.kind)(array, **case.options)


def run(case: Case, device: str) -> np.ndarray:
    """All of the shared memory after a load, in bytes, or the array after a store."""
    array = devices.move(case.array, device)
    mapped = map_of(case, array)
    words = (case.place + mapped.copy_bytes + MARGIN) // 4
    shared_bytes = 4 * words + 8
    if case.content is not None:
        content = devices.move(np.resize(case.content, 4 * words).view(np.uint32), device)
        kernel = f"golden_tma_store_{mapped.rank}"
        launch(kernel, 1, mapped, content, words, case.place, *case.at, shared_bytes=shared_bytes)
        return devices.to_numpy(array).copy()
    dump = devices.empty((words,), np.uint32, array)
    kernel = "golden_tma_im2col" if mapped.kind == "im2col" else f"golden_tma_load_{mapped.rank}"
    numbers = (words, case.place, mapped.copy_bytes, *case.at, *case.offsets)
    launch(kernel, 1, mapped, dump, *numbers, shared_bytes=shared_bytes)
    return devices.to_numpy(dump).copy().view(np.uint8)


def numbered(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Elements that tell where they are from: 1, 2, … as far as the type has integers."""
    most = {"uint8": 251, "float16": 2039, "bfloat16": 251}.get(np.dtype(dtype).name, 1 << 20)  # primes
    return (np.arange(np.prod(shape)) % most + 1).astype(dtype).reshape(shape)


@cache
def cases() -> dict[str, Case]:
    """Every program with its data, which is the same on every machine."""
    return {**loads(), **walks(), **conversions(), **stores()}


def loads() -> dict[str, Case]:
    """Boxes of all ranks, sizes of elements and swizzles, at the array's ends and outside."""
    found = {}
    for rank, (shape, box, at) in enumerate(
        [((40,), (16,), (32,)), ((9, 32), (32, 4), (-8, 7)), ((3, 5, 24), (8, 3, 2), (16, -1, 2)),
         ((2, 3, 4, 16), (16, 2, 2, 2), (8, 3, 1, -1)), ((2, 2, 3, 3, 8), (8, 2, 2, 2, 2), (0, 2, -1, 1, 1))], 1
    ):  # fmt: skip
        found[f"tma_rank_{rank}"] = Case("tiled", numbered(shape, np.float32), {"box": box}, at)
    for dtype in (np.uint8, np.uint16, np.float32, np.uint64):
        item = np.dtype(dtype).itemsize
        name = np.dtype(dtype).name
        x = numbered((40, 256 // item), dtype)
        for swizzle in (0, 32, 64, 128):
            options = {"box": ((swizzle or 48) // item, 21), "swizzle": swizzle}
            at = (64 // item, 24)  # past the last row
            found[f"tma_{name}_swizzle_{swizzle}"] = Case("tiled", x, options, at, place=1024)
    x = numbered((40, 64), np.uint16)
    for place in (128, 256, 384, 896):
        found[f"tma_place_{place}"] = Case("tiled", x, {"box": (40, 5)}, (8, 3), place=place)
    for swizzle, place in ((32, 256), (32, 768), (64, 512)):
        options = {"box": (swizzle // 2, 11), "swizzle": swizzle}
        found[f"tma_swizzle_{swizzle}_place_{place}"] = Case("tiled", x, options, (0, 1), place=place)
    for name, at in {"outside_before": (-64, 0), "outside_after": (0, 40), "far": (1 << 30, -(1 << 30))}.items():
        found[f"tma_{name}"] = Case("tiled", x, {"box": (64, 4), "swizzle": 128}, at)
    for steps in ((1, 2), (1, 3), (1, 8)):
        options = {"box": (16, 10), "element_strides": steps}
        found[f"tma_every_{steps[1]}th"] = Case("tiled", x, options, (8, -3))
    strided = numbered((6, 10, 48), np.uint16)[::2, 1:8, 8:40]
    found["tma_strided"] = Case("tiled", strided, {"box": (16, 4, 2), "swizzle": 32}, (24, 5, 1))
    return found


def walks() -> dict[str, Case]:
    """im2col: images that are not square, all corners different, starts and ends in mid row, offsets, tails."""
    x = numbered((3, 5, 7, 24), np.uint16)
    uneven = {"filter": (2, 3), "padding": ((1, 2), (0, 3)), "channels": 16, "pixels": 64, "swizzle": 32}
    steps = {"filter": (3, 2), "padding": ((1, 1), (2, 0)), "stride": (2, 3), "channels": 8, "pixels": 24}
    dilated = {"filter": (2, 2), "padding": ((2, 2), (1, 3)), "stride": (3, 1), "dilation": (3, 2), "channels": 32,
               "pixels": 256, "swizzle": 64}  # fmt: skip
    many = {"filter": (1, 1), "padding": ((0, 0), (0, 0)), "channels": 8, "pixels": 1024}
    one = {"filter": (1, 1), "padding": ((0, 0), (0, 0)), "channels": 24, "pixels": 1}
    wide = {"filter": (1, 1), "padding": ((128, 0), (128, 0)), "channels": 8, "pixels": 16}
    gradient = {"size": (4, 8), "filter": (3, 2), "padding": ((1, 2), (1, 1)), "dilation": (1, 3)}
    return {
        "im2col_uneven": Case("im2col", x, uneven, (0, 0, -1, 0), (0, 0), 1024),
        "im2col_last_tap": Case("im2col", x, uneven, (8, 3, 2, 1), (2, 1), 1024),
        "im2col_image_end": Case("im2col", x, uneven, (16, 7, 4, 2), (1, 0), 1024),
        "im2col_stride": Case("im2col", x, steps, (8, 1, 1, 1), (1, 2)),
        "im2col_dilated": Case("im2col", x, dilated, (0, -1, -2, 0), (2, 3), 512),
        "im2col_many": Case("im2col", x, many, (16, 2, 1, 0), (0, 0)),
        "im2col_one": Case("im2col", x, one, (0, 6, 4, 2), (0, 0)),
        "im2col_offset": Case("im2col", x, wide, (0, -128, -128, 0), (128, 130)),
        "im2col_offset_255": Case("im2col", x, wide, (0, -126, -128, 0), (255, 128)),
        "im2col_backward": Case("im2col_backward", x[:, :, :, :16], {**gradient, "channels": 16, "pixels": 70},
                                (0, 0, -1, 1), (3, 2)),
    }  # fmt: skip


def conversions() -> dict[str, Case]:
    """Rounding to tf32 with ties, carries and NaN; what is outside as NaN; NaN of 16 bits as they are."""
    low = np.array([0, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x3000, 0x2FFF, 0x3001], np.uint32)
    high = np.array([0x3F800000, 0xBFFFE000, 0x7F7FE000, 0x7F800000, 0xFF800000, 0x00000000, 0x007FE000, 0x7FC00000],
                    np.uint32)  # fmt: skip
    edges = (high[:, None] | low).view(np.float32)
    halves = (np.arange(64, dtype=np.uint16) + 0x7FC0).reshape(8, 8)
    box = {"box": (16, 10)}
    return {
        "tma_tf32": Case("tiled", edges, {"box": (8, 8), "tf32": True}, (0, 0)),
        "tma_nan_float32": Case("tiled", numbered((8, 8), np.float32), {**box, "nan": True}, (-4, 2)),
        "tma_nan_float16": Case("tiled", numbered((8, 8), np.float16), {**box, "nan": True}, (-4, 2)),
        "tma_nan_bfloat16": Case("tiled", numbered((8, 8), bfloat16), {**box, "nan": True}, (-4, 2)),
        "tma_nan_payloads": Case("tiled", halves.view(bfloat16), {**box, "nan": True}, (0, 0)),
    }


def stores() -> dict[str, Case]:
    """Boxes that reach past each end, from all swizzles."""
    content = numbered((1 << 14,), np.uint8)
    found = {}
    for rank, (shape, box, at) in enumerate(
        [((40,), (16,), (32,)), ((9, 32), (32, 4), (8, 7)), ((3, 5, 24), (8, 3, 2), (20, 3, 2)),
         ((2, 3, 4, 16), (16, 2, 2, 2), (8, 3, 1, 1)), ((2, 2, 3, 3, 8), (8, 2, 2, 2, 2), (4, 2, 1, 0, 1))], 1
    ):  # fmt: skip
        array = numbered(shape, np.float32)
        found[f"tma_store_rank_{rank}"] = Case("tiled", array, {"box": box, "stores": True}, at, content=content)
    for swizzle in (32, 64, 128):
        options = {"box": (swizzle // 2, 21), "swizzle": swizzle, "stores": True}
        found[f"tma_store_swizzle_{swizzle}"] = Case(
            "tiled", numbered((24, 96), np.uint16), options, (56, 8), place=1024, content=content
        )
    return found
