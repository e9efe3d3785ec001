"""wgmma and stmatrix: layouts, arithmetic and asynchrony, beside definitions in NumPy; every misuse gives its error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.launch import SimulatorError, launch, simulator, sources
from tests import wgmma
from tests.check import assert_equal, assert_same_bits
from tests.kernel_check import SCHEDULES, on

KERNELS = Path(__file__).parent / "kernels"
WORDS, STEPS = 10240, 4


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    sources.register(KERNELS / "golden_wgmma.cu")
    sources.register(KERNELS / "planted_wgmma.cu")
    yield


class Operand(NamedTuple):
    start: int
    leading: int
    stride: int
    step: int


def size_of(form: str) -> int:
    return 4 if form == "tf32" else 2


def integers(form: str, seed: int) -> np.ndarray:
    """A memory full of integers between −9 and 9."""
    numbers = np.random.default_rng(seed).integers(-9, 10, WORDS * 4 // size_of(form)).astype(np.float32)
    if form == "tf32":
        return numbers.view(np.uint32)
    if form == "f16":
        return numbers.astype(np.float16).view(np.uint32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)


def packed(rows: int, form: str, mn_major: bool, swizzle: int, start: int) -> tuple[Operand, int]:
    """Slabs as wide as the swizzle, one after the other, that hold as many steps as fit; and where they end."""
    size, terms = size_of(form), 32 // size_of(form)
    width = swizzle or 16
    if not mn_major:
        if swizzle:  # (rows, width) slabs: a step is 32 bytes further in the same rows
            return Operand(start, 16, 8 * width, 32), start + rows * width
        return Operand(start, rows * 16, 128, 2 * rows * 16), start + STEPS * 2 * rows * 16
    depth = terms if rows > 64 else terms * STEPS
    if swizzle:  # (depth terms, width) slabs: a step is two groups of eight terms further
        slabs = max(1, rows * size // width)
        return Operand(start, depth * width, 8 * width, 16 * width), start + slabs * depth * width
    return Operand(start, 128, depth * 16, 256), start + rows // 8 * depth * 16


def steps_of(form: str, swizzle: int, majors: str, columns: int) -> int:
    """How many steps `packed` has room for."""
    if "m" in majors and (columns > 64 or (majors[0] == "m" and columns > 64)):
        return 1
    return min(STEPS, swizzle // 32) if swizzle and "k" in majors else STEPS


def operand_bits(memory, form, rows, mn_major, swizzle, at: Operand, step: int) -> np.ndarray:
    where = wgmma.addresses(rows, form, mn_major, swizzle, at.start + step * at.step, at.leading, at.stride)
    return wgmma.element_bits(memory, form, where)


def run(device, kernel, memory, c, a, b, swizzle, steps, accumulate) -> np.ndarray:
    words, c_on = on(device, memory, c)
    y = devices.empty(c.shape, np.float32, c_on)
    launch(f"golden_wgmma_{kernel}", 1, words, c_on, y, tuple(a), tuple(b), swizzle, steps, int(accumulate))
    return devices.to_numpy(y)


def round_up(value: int) -> int:
    return -(-value // 1024) * 1024


def check_integers(device, kernel, swizzle, accumulate=True, a_change=None, b_change=None):
    form, columns, majors = kernel.split("_")
    N = int(columns)
    memory = integers(form, N + swizzle)
    a, end = packed(64, form, majors[0] == "m", swizzle, 0)
    b, end = packed(N, form, majors[1] == "m", swizzle, round_up(end))
    a, b = a._replace(**(a_change or {})), b._replace(**(b_change or {}))
    assert end <= WORDS * 4
    steps = steps_of(form, swizzle, majors, N)
    rows, positions = wgmma.d_rows(N)
    c = np.random.default_rng(N).integers(-999, 1000, (64, N)).astype(np.float32)
    want = c if accumulate else np.zeros_like(c)
    for k in range(steps):
        left = wgmma.values(form, operand_bits(memory, form, 64, majors[0] == "m", swizzle, a, k))
        right = wgmma.values(form, operand_bits(memory, form, N, majors[1] == "m", swizzle, b, k))
        want = want + left @ right.T
    before = c if accumulate else np.full_like(c, np.nan)
    got = run(device, kernel, memory, np.ascontiguousarray(before[rows, positions]), a, b, swizzle, steps, accumulate)
    assert_equal(got, want[rows, positions])


@pytest.mark.parametrize("swizzle", wgmma.SWIZZLES)
@pytest.mark.parametrize(
    "kernel",
    ["bf16_8_kk", "bf16_64_kk", "bf16_8_mm", "bf16_64_mk", "bf16_128_km", "bf16_256_mm", "f16_64_mm", "f16_96_km",
     "tf32_8_kk", "tf32_64_kk"],
)  # fmt: skip
def test_layouts_are_exact_on_integers(device, kernel, swizzle):
    check_integers(device, kernel, swizzle)


@pytest.mark.parametrize("N", [16, 32, 96, 128, 192, 256])
def test_sizes_are_exact_on_integers(device, N):
    check_integers(device, f"bf16_{N}_kk", 64 if N < 256 else 128)
    if N == 256:
        check_integers(device, "tf32_256_kk", 64)


def test_without_accumulation_nan_in_d_is_not_read(device):
    check_integers(device, "bf16_64_kk", 128, accumulate=False)
    check_integers(device, "tf32_8_kk", 32, accumulate=False)


def test_distances_other_than_packed(device):
    """Leading distances that are not used, rows further apart, and a start at any multiple of the pattern."""
    check_integers(device, "bf16_64_kk", 128, a_change={"leading": 4080}, b_change={"stride": 2048})
    check_integers(device, "bf16_8_kk", 64, b_change={"start": 8192 + 512, "leading": 0})
    check_integers(device, "f16_64_mm", 32, b_change={"leading": 4096, "stride": 512, "step": 1024})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mode", ["asan", "race"])
def test_sound(mode, schedule):
    with simulator.configured(mode=mode, **schedule):
        check_integers("sim", "bf16_64_kk", 128)


REGISTER_FORMS = [("bf16", 64, False), ("bf16", 128, True), ("f16", 32, False), ("tf32", 64, False)]


@pytest.mark.parametrize("form, N, mn_major", REGISTER_FORMS)
@pytest.mark.parametrize("accumulate", [True, False])
def test_a_in_registers(device, form, N, mn_major, accumulate):
    memory = integers(form, 5)
    bits = integers(form, 6)[: STEPS * 64 * 8].view(np.uint32 if form == "tf32" else np.uint16)
    a = bits.reshape(STEPS, 64, 32 // size_of(form))
    registers = np.ascontiguousarray(np.stack([wgmma.a_registers(form, each) for each in a]).astype(np.uint32))
    b = Operand(0, 64 * 128, 1024, 2048) if mn_major else Operand(0, 16, 1024, 32)
    want = c = np.random.default_rng(N).integers(-999, 1000, (64, N)).astype(np.float32)
    if not accumulate:
        want, c = np.zeros_like(c), np.full_like(c, np.nan)
    for k in range(STEPS):
        right = wgmma.values(form, operand_bits(memory, form, N, mn_major, 128, b, k))
        want = want + wgmma.values(form, a[k]) @ right.T
    rows, columns = wgmma.d_rows(N)
    words, registers_on, c_on = on(device, memory, registers, np.ascontiguousarray(c[rows, columns]))
    y = devices.empty(c_on.shape, np.float32, c_on)
    kernel = f"golden_wgmma_registers_{form}_{N}_{'m' if mn_major else 'k'}"
    launch(kernel, 1, words, registers_on, c_on, y, tuple(b), 128, int(accumulate))
    assert_equal(devices.to_numpy(y), want[rows, columns])


def spread(form: str, kind: str) -> np.ndarray:
    """A memory of any bits, or of normally distributed numbers, or of those with wider exponents."""
    generator = np.random.default_rng(len(kind))
    if kind == "bits":
        return generator.integers(0, 1 << 32, WORDS, np.uint32)
    numbers = generator.standard_normal(WORDS * 4 // size_of(form)).astype(np.float32)
    if kind == "wide":
        numbers *= np.exp2(generator.integers(-7 if form == "f16" else -40, 8, numbers.size)).astype(np.float32)
    if form == "tf32":
        return numbers.view(np.uint32)
    if form == "f16":
        return numbers.astype(np.float16).view(np.uint32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)


@pytest.mark.parametrize("form", ["bf16", "f16", "tf32"])
@pytest.mark.parametrize("kind", ["normal", "wide", "bits"])
def test_arithmetic_bit_by_bit(device, form, kind):
    memory = spread(form, kind)
    a, b = Operand(0, 16, 1024, 32), Operand(8192, 16, 1024, 32)
    generator = np.random.default_rng(3)
    c = generator.standard_normal((64, 8)).astype(np.float32)
    c[:32] *= np.exp2(generator.integers(-30, 31, (32, 8))).astype(np.float32)
    left, right = (
        wgmma.values(form, operand_bits(memory, form, rows, False, 128, at, 0)) for rows, at in ((64, a), (8, b))
    )
    rows, columns = wgmma.d_rows(8)
    got = run(device, f"{form}_8_kk", memory, np.ascontiguousarray(c[rows, columns]), a, b, 128, 1, True)
    assert_same_bits(got, np.ascontiguousarray(wgmma.product(form, left, right, c)[rows, columns]))


def test_store_matrices(device):
    generator = np.random.default_rng(8)
    registers = generator.integers(0, 1 << 32, (32, 4), np.uint32)
    rows = generator.permutation(32).astype(np.int32)
    registers_on, rows_on = on(device, registers, rows)
    y = devices.empty((6, 32, 4), np.uint32, rows_on)
    launch("golden_store_matrices", 1, registers_on, rows_on, y)
    assert_same_bits(devices.to_numpy(y), wgmma.store_matrices(registers, rows))


def planted(kernel: str, words: int = 64 * 32) -> np.ndarray:
    """y (128,32) of a planted kernel on integers, of which it writes so many words to each tile."""
    (x,) = on("sim", integers("bf16", 1)[: 2 * 64 * 32])
    y = devices.empty((128, 32), np.float32, x)
    launch(f"planted_wgmma_{kernel}", 1, x, y, words)
    return devices.to_numpy(y)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mode", simulator.KERNEL_FLAGS)
def test_groups_in_flight(mode, schedule):
    x = integers("bf16", 1)
    want, slices = np.ones((64, 64), np.float32), []
    for k in range(4):
        at = Operand(32 * k, 16, 1024, 0), Operand(64 * 128 + 32 * k, 16, 1024, 0)
        left, right = (wgmma.values("bf16", operand_bits(x, "bf16", 64, False, 128, each, 0)) for each in at)
        slices.append(left @ right.T)
    want = (want + slices[0] + slices[1] + slices[2]) * 2 + slices[3]
    with simulator.configured(mode=mode, **schedule):
        assert_equal(planted("sound"), want[wgmma.d_rows(64)])


@pytest.mark.parametrize("late", [True, False])
def test_a_read_before_the_wait_gives_nan(late):
    with simulator.configured(late_copies=late):
        y = planted("read_before_wait")
    assert np.isnan(y).all() if late else np.isfinite(y).all()


FAULTS = [
    # kernel, mode, a part of the message
    ("write_before_wait", "fast", "the accumulator was written before the wait"),
    ("no_fence", "fast", "no wgmma_fence stands before the first"),
    ("no_fence_after_change", "fast", "changed after its wait, and no wgmma_fence"),
    ("no_commit", "fast", "no wgmma_commit after the last wgmma"),
    ("no_wait", "fast", "has not waited"),
    ("start_inside_pattern", "fast", "a starts 128 bytes after a multiple of 1024"),
    ("reserved_bits", "fast", "a sets bits that have no meaning"),
    ("base_offset", "fast", "b has a base offset"),
    ("outside_memory", "fast", "b reaches shared address"),
    ("past_the_array", "asan", "a read of 16 bytes at shared offset"),
    ("lanes_differ", "fast", "the lanes of a warp give different"),
    ("warps_differ", "fast", "the warps of a warpgroup give different"),
    ("warp_missing", "fast", "fewer operations than the others|a warp of the warpgroup has ended"),
    ("lane_missing", "fast", "divergent warp operation"),
    ("two_warps", "fast", "a warpgroup is four warps"),
    ("other_shape", "fast", "another shape on the same registers"),
    ("a_changed_before_wait", "fast", "the registers of a were changed before the wait"),
    ("a_changed_without_fence", "fast", "changed after the last wgmma_fence"),
    ("overwritten_before_wait", "race", "that is under way reads"),
    ("released_by_one_warp", "race", "that is under way reads|no barrier between"),
    ("outside_shared", "fast", "an address is not in shared memory"),
]


@pytest.mark.parametrize("kernel, mode, message", FAULTS)
@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_misuse_is_found(kernel, mode, message, schedule):
    with simulator.configured(mode=mode, **schedule), pytest.raises(SimulatorError, match=message) as caught:
        planted(kernel)
    assert caught.value.kind in ("wgmma", "race", "uninitialised", "out of bounds", "divergent warp operation")
    assert np.isfinite(planted("sound")).all()  # the next launch is not disturbed


def test_only_hopper_has_wgmma():
    with simulator.configured(architecture="sm_80"), pytest.raises(SimulatorError, match="sm_90 only"):
        planted("sound")


def test_shared_memory_that_nothing_wrote():
    with simulator.configured(mode="race"), pytest.raises(SimulatorError, match="which nothing wrote"):
        planted("sound", words=63 * 32)
