"""wgmma and stmatrix: layouts, arithmetic and asynchrony, beside definitions in NumPy; every misuse gives its error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpucnn import device as devices
from gpucnn.bench.golden_wgmma import STEPS, WORDS, Operand, encoded, integers, packed, size_of
from gpucnn.launch import SimulatorError, launch, simulator, sources
from tests import wgmma
from tests.check import assert_equal, assert_same_bits
from tests.kernel_check import SCHEDULES, on

KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    sources.register(KERNELS / "golden_wgmma.cu")
    sources.register(KERNELS / "planted_wgmma.cu")
    yield


def run(device, kernel, memory, c, a, b, swizzle, steps, accumulate) -> np.ndarray:
    words, c_on = on(device, memory, c)
    y = devices.empty(c.shape, np.float32, c_on)
    launch(f"golden_wgmma_{kernel}", 1, words, c_on, y, tuple(a), tuple(b), swizzle, steps, int(accumulate))
    return devices.to_numpy(y)


def check_integers(device, kernel, swizzle, accumulate=True, a_change=None, b_change=None):
    form, columns, _ = kernel.split("_")
    memory, layout = integers(form, int(columns) + swizzle), packed(kernel, swizzle)
    a, b = layout.a._replace(**(a_change or {})), layout.b._replace(**(b_change or {}))
    c = np.random.default_rng(int(columns)).integers(-999, 1000, (128, int(columns) // 2)).astype(np.float32)
    if not accumulate:
        c[:] = np.nan
    got = run(device, kernel, memory, c, a, b, swizzle, layout.steps, accumulate)
    assert_equal(got, wgmma.run(kernel, memory, c, a, b, swizzle, layout.steps, accumulate))


@pytest.mark.parametrize("swizzle", wgmma.SWIZZLES)
@pytest.mark.parametrize(
    "kernel",
    ["bf16_8_kk", "bf16_64_kk", "bf16_8_mm", "bf16_64_mk", "bf16_128_km", "bf16_256_mm", "f16_64_mm", "f16_96_km",
     "tf32_8_kk", "tf32_64_kk"],
)  # fmt: skip
def test_layouts_are_exact_on_integers(device, kernel, swizzle):
    check_integers(device, kernel, swizzle)


@pytest.mark.parametrize("N", [16, 32, 96, 128, 192, 200, 256])
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
    d = c = np.random.default_rng(N).integers(-999, 1000, (64, N)).astype(np.float32)
    if not accumulate:
        d, c = np.zeros_like(c), np.full_like(c, np.nan)
    for step in range(STEPS):
        d = wgmma.product(form, wgmma.values(form, a[step]), operand(memory, form, N, mn_major, b, step), d)
    where = wgmma.d_rows(N)
    words, registers_on, c_on = on(device, memory, registers, np.ascontiguousarray(c[where]))
    y = devices.empty(c_on.shape, np.float32, c_on)
    kernel = f"golden_wgmma_registers_{form}_{N}_{'m' if mn_major else 'k'}"
    launch(kernel, 1, words, registers_on, c_on, y, tuple(b), 128, int(accumulate))
    assert_equal(devices.to_numpy(y), d[where])


def operand(memory: np.ndarray, form: str, rows: int, mn_major: bool, at: Operand, step: int) -> np.ndarray:
    """The numbers (rows, terms) of an operand with a swizzle of 128 bytes."""
    where = wgmma.addresses(rows, form, mn_major, 128, at.start + step * at.step, at.leading, at.stride)
    return wgmma.values(form, wgmma.element_bits(memory, form, where))


def spread(form: str, kind: str) -> np.ndarray:
    """A memory of any bits, or of normally distributed numbers, or of those with wider exponents."""
    generator = np.random.default_rng(len(kind))
    if kind == "bits":
        return generator.integers(0, 1 << 32, WORDS, np.uint32)
    numbers = generator.standard_normal(WORDS * 4 // size_of(form)).astype(np.float32)
    if kind == "wide":
        numbers *= np.exp2(generator.integers(-7 if form == "f16" else -40, 8, numbers.size)).astype(np.float32)
    return encoded(form, numbers)


@pytest.mark.parametrize("form", ["bf16", "f16", "tf32"])
@pytest.mark.parametrize("kind", ["normal", "wide", "bits"])
def test_arithmetic_bit_by_bit(device, form, kind):
    memory = spread(form, kind)
    a, b = Operand(0, 16, 1024, 32), Operand(8192, 16, 1024, 32)
    generator = np.random.default_rng(3)
    c = generator.standard_normal((128, 4)).astype(np.float32)
    c[:64] *= np.exp2(generator.integers(-30, 31, (64, 4))).astype(np.float32)
    kernel = f"{form}_8_kk"
    got = run(device, kernel, memory, c, a, b, 128, 1, True)
    assert_same_bits(got, wgmma.run(kernel, memory, c, a, b, 128, 1, 1))


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
    slices = []
    for k in range(4):
        at = Operand(32 * k, 16, 1024, 0), Operand(64 * 128 + 32 * k, 16, 1024, 0)
        left, right = (operand(x, "bf16", 64, False, each, 0) for each in at)
        slices.append(left @ right.T)
    want = (1 + slices[0] + slices[1] + slices[2]) * 2 + slices[3]
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
