"""TMA: loads, im2col walks and stores beside an element-by-element reference; tensor maps and their limits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.bench import golden_tma
from gpucnn.bench.golden_tma import Case, numbered
from gpucnn.launch import SimulatorError, jit, launch, native, plan, simulator, sources, tensor_map
from gpucnn.launch.tensor_map import im2col, im2col_backward, tiled
from tests import tma
from tests.check import assert_equal, assert_same_bits
from tests.kernel_check import assert_sound, on

CASES = golden_tma.cases()
SOUND = "tma_rank_5", "tma_uint16_swizzle_64", "im2col_last_tap", "tma_store_rank_3", "tma_multicast_1_0110"
KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    sources.register(KERNELS / "golden_tma.cu")
    sources.register(KERNELS / "planted_tma.cu")
    yield


@pytest.fixture(autouse=True)
def needs_sm_90(device: str) -> None:
    if device != "sim" and devices.gpu(device)[1][0] != 9:
        pytest.skip("TMA kernels are for sm_90")


def expected(case: Case) -> np.ndarray:
    return tma.loaded(case) if case.content is None else tma.stored(case)


@pytest.mark.parametrize("name", CASES)
def test_golden(name, device):
    assert_same_bits(golden_tma.run(CASES[name], device), expected(CASES[name]))


@pytest.mark.parametrize("name", SOUND)
def test_golden_is_sound(name, device):
    assert_sound(lambda: golden_tma.run(CASES[name], device), device)


def test_random_boxes(rng, device):
    for _ in range(60):
        rank = int(rng.integers(1, 6))
        item = int(rng.choice([1, 2, 4, 8]))
        swizzle = int(rng.choice([0, 32, 64, 128]))
        unit = 16 // item
        inner = swizzle // item if swizzle else int(rng.integers(1, 5)) * unit
        box = (inner, *(int(rng.integers(1, 5)) for _ in range(rank - 1)))
        shape = (*(int(rng.integers(1, 7)) for _ in range(rank - 1)), int(rng.integers(1, 10)) * unit)
        at = tuple(int(rng.integers(-size, length + 1)) for size, length in zip(box, shape[::-1], strict=True))
        steps = (1, *(int(rng.integers(1, 4)) for _ in range(rank - 1)))
        options = {"box": box, "swizzle": swizzle, "element_strides": steps}
        case = Case(
            "tiled", numbered(shape, f"u{item}"), options, at, place=128 * (8 if swizzle else int(rng.integers(9)))
        )
        assert_same_bits(golden_tma.run(case, device), tma.loaded(case))
        content = rng.integers(0, 256, 4096).astype(np.uint8)
        options = {"box": box, "swizzle": swizzle, "stores": True}
        case = case._replace(at=tuple(max(0, each) for each in at), options=options, content=content)
        assert_same_bits(golden_tma.run(case, device), tma.stored(case))


def random_convolution(rng: np.random.Generator, strides: int) -> dict[str, Any]:
    while True:
        draw = {
            "filter": tuple(map(int, rng.integers(1, 5, 2))),
            "dilation": tuple(map(int, rng.integers(1, 4, 2))),
            "stride": tuple(map(int, rng.integers(1, strides + 1, 2))),
            "padding": tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (2, 2))),
            "size": tuple(map(int, rng.integers(1, 12, 2))),
        }
        if all(_outputs(draw, axis) > 0 for axis in range(2)):
            return draw


def _outputs(draw: dict[str, Any], axis: int) -> int:
    reach = (draw["filter"][axis] - 1) * draw["dilation"][axis]
    return int((draw["size"][axis] + sum(draw["padding"][axis]) - reach - 1) // draw["stride"][axis] + 1)


def taps_of(rng: np.random.Generator, draw: dict[str, Any]) -> tuple[int, int]:
    r, s = (int(rng.integers(taps)) for taps in draw["filter"])
    return r, s


def test_walks_are_im2col_of_random_convolutions(rng, device):
    """Of any start, tap and channel: rows of the explicit matrix, zeros after the last image."""
    for _ in range(60):
        draw = random_convolution(rng, 3)
        x = numbered((int(rng.integers(1, 4)), *draw["size"], 8 * int(rng.integers(1, 4))), np.uint16)
        (r, s), c = taps_of(rng, draw), int(rng.integers(0, 3)) * 8
        (p_count, q_count) = (_outputs(draw, axis) for axis in range(2))
        padded = np.pad(x, ((0, 0), *draw["padding"], (0, 16 + c)))
        rows, columns = (
            np.arange(count) * draw["stride"][axis] + tap * draw["dilation"][axis]
            for axis, count, tap in ((0, p_count, r), (1, q_count, s))
        )
        matrix = padded[:, rows][:, :, columns, c : c + 16].reshape(-1, 16)
        m, pixels = int(rng.integers(len(matrix))), int(rng.integers(1, 60))
        n, p, q = np.unravel_index(m, (len(x), p_count, q_count))
        start = [int(i) * draw["stride"][axis] - draw["padding"][axis][0] for axis, i in ((1, q), (0, p))]
        options = {key: draw[key] for key in ("filter", "dilation", "stride", "padding")}
        offsets = (s * draw["dilation"][1], r * draw["dilation"][0])
        options |= {"channels": 16, "pixels": pixels, "swizzle": 32}
        case = Case("im2col", x, options, (c, *start, int(n)), offsets)
        check_rows(golden_tma.run(case, device), np.vstack([matrix[m:], np.zeros((pixels, 16), np.uint16)])[:pixels])


def test_backward_walks_are_the_rows_of_random_gradients(rng, device):
    """Row (n, h, w), tap (r, s): dy at h + top − r·dilation, w + left − s·dilation, or zero."""
    for _ in range(40):
        draw = random_convolution(rng, 1)
        (height, width), (r, s) = draw["size"], taps_of(rng, draw)
        dy = numbered((2, _outputs(draw, 0), _outputs(draw, 1), 16), np.uint16)
        matrix = np.zeros((2, height, width, 16), np.uint16)
        for h in range(height):
            for w in range(width):
                p = h + draw["padding"][0][0] - r * draw["dilation"][0]
                q = w + draw["padding"][1][0] - s * draw["dilation"][1]
                if 0 <= p < dy.shape[1] and 0 <= q < dy.shape[2]:
                    matrix[:, h, w] = dy[:, p, q]
        m, pixels = int(rng.integers(matrix.size // 16)), int(rng.integers(1, 60))
        n, h, w = map(int, np.unravel_index(m, matrix.shape[:3]))
        options = {key: draw[key] for key in ("filter", "dilation", "padding", "size")}
        lower = [draw["padding"][axis][0] - (draw["filter"][axis] - 1) * draw["dilation"][axis] for axis in range(2)]
        offsets = tuple((draw["filter"][a] - 1 - tap) * draw["dilation"][a] for a, tap in ((1, s), (0, r)))
        options |= {"channels": 16, "pixels": pixels, "swizzle": 32}
        case = Case("im2col_backward", dy, options, (0, w + lower[1], h + lower[0], n), offsets)
        rows = np.vstack([matrix.reshape(-1, 16)[m:], np.zeros((pixels, 16), np.uint16)])[:pixels]
        check_rows(golden_tma.run(case, device), rows)


def check_rows(shared: np.ndarray, rows: np.ndarray) -> None:
    """Shared memory has the rows from its start on, of 32 bytes with that swizzle."""
    byte = np.arange(rows.nbytes)
    assert_same_bits(shared[byte ^ (byte >> 7 & 1) << 4].view(np.uint16).reshape(rows.shape), rows)


X = np.zeros((4, 6, 8, 64), np.float16)
CONVOLUTION: dict[str, Any] = {"filter": (3, 3), "padding": ((1, 1), (1, 1)), "channels": 64, "pixels": 64}
FLAT = np.zeros((8, 64), np.float16)
REFUSED = {
    "box[1] is 257; it must be from 1 to 256": lambda: tiled(FLAT, (64, 257)),
    "box[0] is 0; it must be from 1 to 256": lambda: tiled(FLAT, (0, 1)),
    "box has 1 values; a map of rank 2 takes 2": lambda: tiled(FLAT, (64,)),
    "box[0] is 12: 24 bytes; they must be a multiple of 16": lambda: tiled(FLAT, (12, 1)),
    "box[0] is 128: 256 bytes; with this swizzle they must be 128": lambda: tiled(FLAT, (128, 1), 128),
    "box[0] is 32: 64 bytes; with this swizzle they must be 128": lambda: tiled(FLAT, (32, 1), 128),
    "swizzle is 16; it must be 0, 32, 64 or 128": lambda: tiled(FLAT, (64, 1), 16),
    "element_strides[1] is 9; it must be from 1 to 8": lambda: tiled(FLAT, (64, 1), element_strides=(1, 9)),
    "rank is 6; it must be from 1 to 5 for a map of the kind tiled": lambda: tiled(np.zeros((1,) * 5 + (8,)), (8,) * 6),
    "strides[0] is 40 bytes; it must be a multiple of 16": lambda: tiled(np.zeros((8, 20), np.float16), (8, 1)),
    "strides[0] is 0; it must be from 16": lambda: tiled(np.broadcast_to(FLAT[:1], (4, 64)), (8, 1)),
    "strides[0] is -128; it must be from 16": lambda: tiled(FLAT[::-1], (8, 1)),
    "the last dimension's stride is 4 bytes": lambda: tiled(FLAT[:, ::2], (8, 1)),
    "it must be a multiple of 16": lambda: tiled(devices.move(FLAT, "sim")[:, 1:], (8, 1)),
    "dims[1] is 0; it must be from 1": lambda: tiled(FLAT[:0], (8, 1)),
    "elements of complex128 have 16 bytes": lambda: tiled(np.zeros((8, 8), complex), (8, 1)),
    "tf32 is for float32, not float16": lambda: tiled(FLAT, (8, 1), tf32=True),
    "nan is for floating point, not int32": lambda: tiled(np.zeros((8, 8), np.int32), (8, 1), nan=True),
    "a map that stores takes no element_strides": lambda: tiled(FLAT, (8, 1), element_strides=(1, 2), stores=True),
    "im2col takes 4": lambda: im2col(FLAT, **CONVOLUTION),
    "channels is 512; it must be from 1 to 256": lambda: im2col(X, **{**CONVOLUTION, "channels": 512}),
    "pixels[1] is 1025; it must be from 1 to 1024": lambda: im2col(X, **{**CONVOLUTION, "pixels": 1025}),
    "lower[1] is -129; it must be from -128 to 127": lambda: im2col(
        X, **{**CONVOLUTION, "padding": ((129, 1), (1, 1))}
    ),
    "upper[0] is -129; it must be from -128 to 127": lambda: im2col(
        np.zeros((1, 8, 200, 64), np.float16), **{**CONVOLUTION, "filter": (3, 44), "dilation": (1, 3),
                                                  "padding": ((1, 1), (0, 0))}
    ),
    "a filter that spans 11 does not fit 6": lambda: im2col(X, **{**CONVOLUTION, "filter": (11, 1)}),
    "offset 255 along h": lambda: im2col(
        np.zeros((1, 300, 8, 64), np.float16), **{**CONVOLUTION, "filter": (256, 1), "padding": ((128, 1), (1, 1))}
    ),
    "element_strides[2] is 9; it must be from 1 to 8": lambda: im2col(X, **CONVOLUTION, stride=(9, 1)),
    "channels is 4: 8 bytes; they must be a multiple of 16": lambda: im2col(X, **{**CONVOLUTION, "channels": 4}),
    "dy has 6 along h; inputs of 7 with padding (1, 1) and a filter that spans 3 give 7": lambda: im2col_backward(
        X, size=(7, 8), **CONVOLUTION
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refused_maps(message):
    with pytest.raises(ValueError) as error:
        REFUSED[message]()
    assert str(error.value).startswith("TensorMap: ") and message in str(error.value)


def case_with(**changes: Any) -> Case:
    base = Case("tiled", numbered((16, 64), np.uint16), {"box": (64, 4), "swizzle": 128}, (0, 0))
    return base._replace(**changes)


def fault(case: Case, mode: str = "fast") -> SimulatorError:
    with simulator.configured(mode=mode), pytest.raises(SimulatorError) as error:
        golden_tma.run(case, "sim")
    return error.value


WALK = {**CONVOLUTION, "stride": (1, 2)}
IMAGE = numbered((2, 6, 8, 64), np.uint16)
BOX = {"box": (64, 4), "stores": True}
CONTENT = np.arange(256, dtype=np.uint8)
FAULTS = {
    "shared offset 64; without a swizzle it must be a multiple of 128": case_with(options={"box": (64, 4)}, place=64),
    "with a swizzle of 128 bytes it must be a multiple of 1024": case_with(place=512),
    "with a swizzle of 64 bytes it must be a multiple of 512": case_with(
        options={"box": (32, 4), "swizzle": 64}, place=256
    ),
    "with a swizzle of 32 bytes it must be a multiple of 256": case_with(
        options={"box": (16, 4), "swizzle": 32}, place=128
    ),
    "a store starts at {8, -1}, which is negative": case_with(options=BOX, at=(8, -1), content=CONTENT),
    "a store by a map that was made without stores": case_with(options={"box": (64, 4)}, content=CONTENT),
    "coordinate 1 is -2; the walk goes from -1 to 5": Case("im2col", IMAGE, WALK, (0, -2, -1, 0), (0, 0)),
    "coordinate 2 is 5; the walk goes from -1 to 4": Case("im2col", IMAGE, WALK, (0, -1, 5, 0), (0, 0)),
    "coordinate 1 is 0; the walk goes from -1 in steps of 2": Case("im2col", IMAGE, WALK, (0, 0, -1, 0), (0, 0)),
    "offset 1 is 256; it must be from 0 to 255": Case("im2col", IMAGE, WALK, (0, -1, -1, 0), (0, 256)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_of_a_kernel(message):
    error = fault(FAULTS[message])
    assert error.kind == "TMA" and message in error.message
    assert error.place is not None and error.place.startswith("golden_tma.cu:")


def test_maps_and_kernels_must_agree():
    x = devices.move(FLAT, "sim")
    dump = devices.empty((1024,), np.uint32, x)
    tail = (dump, 512, 0, 128, 0)
    with pytest.raises(SimulatorError, match="the map has rank 1, the copy 2"):
        launch("golden_tma_load_2", 1, tiled(x[0], (64,)), *tail, 0, shared_bytes=4096)
    with pytest.raises(SimulatorError, match="a tiled load by an im2col map"):
        map_ = im2col(devices.move(X, "sim"), **CONVOLUTION)
        launch("golden_tma_load_4", 1, map_, dump, 2048, 0, 8192, 0, 0, 0, 0, shared_bytes=9000)
    with pytest.raises(SimulatorError, match="is in no array"):
        launch("golden_tma_load_1", 1, tiled(x[0], (64,)), dump, 8, 0, 128, 0, shared_bytes=64)
    with pytest.raises(TypeError, match="map is SimArray; it must be a TensorMap of an array on 'cuda' or 'sim'"):
        launch("golden_tma_load_1", 1, x[0], *tail)
    with pytest.raises(TypeError, match="map is a map of ndarray; it must be a TensorMap"):
        launch("golden_tma_load_1", 1, tiled(FLAT[0], (64,)), *tail)


def test_a_map_knows_its_bytes():
    assert tiled(FLAT, (64, 7), element_strides=(1, 3)).copy_bytes == 128 * 3
    assert im2col(X, **CONVOLUTION).copy_bytes == 128 * 64


class Driver:
    """The CUDA driver's encoders by their declarations in cuda.h; they note their arguments and fill the map."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.calls: list[list[Any]] = []
        enum, count, longs, words = ctypes.c_int, ctypes.c_uint32, _many(ctypes.c_uint64), _many(ctypes.c_uint32)
        head = (enum, ctypes.c_void_p, enum, count, ctypes.c_void_p, longs, longs)
        tail = (words, enum, enum, enum, enum)
        corners = _many(ctypes.c_int)
        self.cuTensorMapEncodeTiled = ctypes.CFUNCTYPE(*head, words, *tail)(self.tiled)
        self.cuTensorMapEncodeIm2col = ctypes.CFUNCTYPE(*head, corners, corners, count, count, *tail)(self.im2col)

    def head(self, map_: int, kind: int, rank: int, address: int, dims: Any, strides: Any) -> list[Any]:
        assert map_ % 128 == 0
        ctypes.memset(map_, 0xFF, 128)
        return [kind, address, dims[:rank], strides[: rank - 1]]

    def tiled(self, map_, kind, rank, address, dims, strides, box, steps, *enums):
        self.calls.append([*self.head(map_, kind, rank, address, dims, strides), box[:rank], steps[:rank], *enums])
        return 0

    def im2col(self, map_, kind, rank, address, dims, strides, lower, upper, channels, pixels, steps, *enums):
        head = self.head(map_, kind, rank, address, dims, strides)
        self.calls.append([*head, lower[: rank - 2], upper[: rank - 2], channels, pixels, steps[:rank], *enums])
        return 1 if pixels == 1 else 0


def _many(kind: Any) -> Any:
    return ctypes.POINTER(kind)


@pytest.fixture(params=[13010, 13020])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver(request.param)
    monkeypatch.setattr(tensor_map, "_driver", lambda: found)
    monkeypatch.setattr(tensor_map, "_driver_version", lambda: found.version)
    tensor_map._encode.cache_clear()
    return found


def test_the_driver_is_given_what_its_header_declares(driver):
    """cuda.h: a data type, rank, address, dims, byte strides, box, steps, interleave, swizzle, L2 promotion, fill."""
    x = devices.move(np.zeros((3, 5, 6, 64), np.float16), "sim")
    address, dims, strides = x.ctypes.data, [64, 6, 5, 3], [128, 768, 3840]
    tiled(x, (64, 2, 3, 1), 128, element_strides=(1, 1, 2, 1)).encode()
    assert driver.calls.pop() == [1, address, dims, strides, [64, 2, 3, 1], [1, 1, 2, 1], 0, 3, 2, 0]
    tiled(x, (32, 2, 3, 1), 64, nan=True).encode()
    assert driver.calls.pop() == [6, address, dims, strides, [32, 2, 3, 1], [1, 1, 1, 1], 0, 2, 2, 1]
    geometry: dict[str, Any] = {"filter": (2, 3), "padding": ((1, 2), (3, 0)), "stride": (1, 2)}
    im2col(x, **geometry, channels=16, pixels=70, swizzle=32).encode()
    # Outputs: 5 + 3 − 1 = 7 rows from −1 to 5, (6 + 3 − 2 − 1) // 2 + 1 = 4 pixels from −3 to 3.
    assert driver.calls.pop() == [1, address, dims, strides, [-3, -1], [-2, 1], 16, 70, [1, 2, 1, 1], 0, 1, 2, 0]
    y = devices.move(np.zeros((8, 32), np.float32), "sim")
    tiled(y, (32, 8), 128, tf32=True).encode()
    assert driver.calls.pop() == [11, y.ctypes.data, [32, 8], [128], [32, 8], [1, 1], 0, 3, 2, 0]
    tiled(y[0], (32,)).encode()
    assert driver.calls.pop()[3:5] == [[], [32]]
    with pytest.raises(RuntimeError, match="cuTensorMapEncodeIm2col: error 1 for dims"):
        im2col(x, **geometry, channels=16, pixels=1).encode()


def test_maps_are_encoded_once_and_passed_by_value(driver):
    x = devices.move(FLAT, "sim")
    encoded = tiled(x, (64, 4)).encode()
    assert encoded.shape == (1,) and encoded.nbytes == 128 and encoded.ctypes.data % 128 == 0
    assert tiled(x, (64, 4)).encode() is encoded and len(driver.calls) == 1
    assert tiled(x, (64, 5)).encode() is not encoded
    assert jit._value(tiled(x, (64, 4))) is encoded
    assert native.value_bytes(tiled(x, (64, 4))) == encoded.tobytes()


def test_small_tensors_clear_a_bit_of_old_drivers(driver):
    """Up to driver 13.1, of tensors below 128 KiB."""
    arrays = (devices.move(np.zeros((rows, 64), np.float16), "sim") for rows in (1023, 1024))
    small, large = (tiled(array, (64, 4)).encode().view(np.uint64) for array in arrays)
    assert (large == 2**64 - 1).all() and (np.delete(small, 1) == 2**64 - 1).all()
    assert small[1] == 2**64 - 1 - (1 << 21 if driver.version <= 13010 else 0)


def test_a_recorded_launch_keeps_its_map(device):
    (x,) = on(device, numbered((8, 64), np.uint16))
    dump = devices.empty((256,), np.uint32, x)
    with plan.recording() as recorded:
        launch("golden_tma_load_2", 1, tiled(x, (64, 4)), dump, 256, 0, 512, 0, 4, shared_bytes=1032)
    x[...] = 7
    recorded.replay()
    assert_equal(devices.to_numpy(dump).view(np.uint16)[:256], np.full(256, 7))


def add_places(width: int, fault: int = 0, grid: int = 2) -> np.ndarray:
    x = devices.move(numbered((grid * 32, width // 4), np.uint32), "sim")
    y = devices.empty_like(x)
    swizzle = width if width > 16 else 0
    maps = tiled(x, (width // 4, 16), swizzle), tiled(y, (width // 4, 16), swizzle, stores=True)
    launch(f"planted_tma_{width}", grid, *maps, fault, shared_bytes=4 * 32 * width + 8)
    return devices.to_numpy(y).copy()


def with_places(width: int) -> np.ndarray:
    x = numbered((2, 32, width // 4), np.uint32)
    return (x + np.arange(x[0].size, dtype=np.uint32).reshape(x[0].shape)).reshape(64, -1)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_through_shared_memory(width):
    assert_equal(add_places(width), with_places(width))
    assert_sound(lambda: add_places(width), "sim")


# By the numbers of planted_tma.cu's enum Fault: what is found, and in which mode.
LATE = {"late_copies": True, "order": "reverse"}
PLANTED = {
    "expects one of two": (1, {"mode": "race"}, "race: a copy of a box wrote .* without having waited for its barrier"),
    "expects one of two, late": (1, {"mode": "race", **LATE}, "without having waited for its barrier"),
    "expects too much": (2, {}, "deadlock: .* whose phase 0 lacks 0 arrivals and 2048 bytes"),
    "reads early": (3, {"mode": "race", **LATE}, "uninitialised: a read of shared byte"),
    "no fence": (4, {"mode": "race"}, "race: .* has made no fence_async_shared since"),
    "no barrier of the block": (5, {"mode": "race", **LATE}, "race: .* with no barrier between"),
    "no commit": (6, {}, "TMA: the block ends, and a store was never committed"),
    "no wait": (7, {}, "TMA: the block ends, and nothing waited until a store had read its shared memory"),
    "writes early": (
        8,
        {"mode": "race"},
        "race: a write to shared byte 8192, which .* that is under way reads",
    ),
    "wrong place": (10, {}, "TMA: the box is at shared offset 128; with a swizzle of 128 bytes"),
    "no wait for loads": (11, LATE, "TMA: the block ends while a load into its shared memory is under way"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults(name):
    fault, settings, message = PLANTED[name]
    with simulator.configured(**settings), pytest.raises(SimulatorError, match=message) as error:
        add_places(128, fault)
    assert error.value.place is None or error.value.place.startswith("planted_tma.cu:")


@pytest.mark.parametrize("fault", [3, 8, 9])
def test_planted_faults_give_wrong_numbers(fault):
    """Early reads and writes, and reads at places without the swizzle, in mode fast."""
    with simulator.configured(**LATE):
        if fault == 3:
            with pytest.raises(SimulatorError, match="under way"):
                add_places(128, fault)
            return
        assert np.any(add_places(128, fault) != with_places(128))


def profile_of(case: Case) -> list[tuple[str, bool, int, int]]:
    """(space, writes, bytes, sectors or passes) of the copy, which is counted at two addresses, one after the other."""
    with simulator.profiling() as profiles:
        golden_tma.run(case, "sim")
    ((_, profile),) = profiles
    found = {code: counts for (_, code), counts in profile.lines.items()}
    copies = [counts for code, counts in found.items() if code - 1 in found or code + 1 in found]
    return sorted((c.space, c.writes, c.bytes, c.units) for c in copies)


def test_profile_counts_sectors_and_bytes():
    """All of a box in whole sectors, loaded and stored; 3 of 4 rows and 96 bytes of the other outside the array."""
    x = numbered((16, 64), np.uint16)
    load = Case("tiled", x, {"box": (64, 4), "swizzle": 128}, (0, 3))
    assert profile_of(load) == [("global", False, 512, 16), ("shared", True, 512, 4)]
    store = load._replace(options={**load.options, "stores": True}, content=CONTENT)
    assert profile_of(store) == [("global", True, 512, 16), ("shared", False, 512, 4)]
    multicast = load._replace(multicast=(0, 0b1011))
    assert profile_of(multicast) == [("global", False, 512, 16), ("shared", True, 3 * 512, 3 * 4)]
    outside = load._replace(at=(-48, 15))
    assert profile_of(outside) == [("global", False, 32, 1), ("shared", True, 512, 4)]
