"""DataLoader: order, seeds, threads that never change a bit, errors, and an end without live threads."""

import functools
import gc
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gpucnn import data

COUNT = 50


def numbered(count: int = COUNT) -> data.Dataset:
    """Image i has the pixels i, 2i, 3i (mod 256) and the label i mod 4."""
    pixels = np.arange(count)[:, None, None, None] * np.arange(1, 4)
    return data.Dataset("numbered", pixels.astype(np.uint8), np.arange(count) % 4, tuple("abcd"))


def numbers(images: np.ndarray) -> list[int]:
    """Which images of numbered() these are, if neither moved nor normalised."""
    return np.rint(images[:, 0, 0, 0] * 255).astype(int).tolist()


def read(batches) -> list[tuple[bytes, bytes, tuple[int, ...]]]:
    return [(images.tobytes(), labels.tobytes(), images.shape) for images, labels in batches]


def noisy(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A transform that takes longer for some batches than for others, and draws."""
    time.sleep(float(generator.random()) * 0.003)
    return images + generator.random(images.shape, dtype=np.float32)


def live_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("gpucnn-data")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Every test ends with its loader's threads gone, or a moment later."""
    yield
    deadline = time.monotonic() + 5
    while live_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert live_threads() == []


# ---- batches and their order


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_order(workers):
    loader = data.DataLoader(numbered(), 16, workers=workers)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 4
    assert [images.shape for images, _ in batches] == [(16, 1, 1, 3)] * 3 + [(2, 1, 1, 3)]
    assert [images.dtype for images, _ in batches] == [np.float32] * 4
    assert [labels.dtype for _, labels in batches] == [np.int64] * 4
    assert [n for images, _ in batches for n in numbers(images)] == list(range(COUNT))
    assert np.concatenate([labels for _, labels in batches]).tolist() == [n % 4 for n in range(COUNT)]


@pytest.mark.parametrize(("batch_size", "drop_last", "sizes"), [
    (16, True, [16, 16, 16]),
    (25, True, [25, 25]),
    (25, False, [25, 25]),
    (64, False, [50]),
    (1, True, [1] * 50),
])  # fmt: skip
def test_the_last_batch(batch_size, drop_last, sizes):
    loader = data.DataLoader(numbered(), batch_size, drop_last=drop_last)
    assert [len(labels) for _, labels in loader.epoch(0)] == sizes and len(loader) == len(sizes)


def order(seed: int, epoch: int) -> list[int]:
    loader = data.DataLoader(numbered(), 16, shuffle=True, seed=seed)
    return [n for images, _ in loader.epoch(epoch) for n in numbers(images)]


def test_shuffling_is_a_permutation_of_seed_and_epoch():
    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1, 2**40) for epoch in (0, 1, 7)}
    assert all(sorted(shuffled) == list(range(COUNT)) for shuffled in orders.values())
    assert len({tuple(shuffled) for shuffled in orders.values()}) == 9
    assert order(1, 7) == orders[1, 7]


def test_labels_go_with_their_images():
    for images, labels in data.DataLoader(numbered(), 16, shuffle=True).epoch(3):
        assert [n % 4 for n in numbers(images)] == labels.tolist()


# ---- the same bits whatever happens around


def random_loader(workers: int, prefetch: int = 4) -> data.DataLoader:
    return data.DataLoader(
        numbered(),
        7,
        shuffle=True,
        augment=data.Augment(data.Shift(1), data.Flip()),
        normalize=data.Normalize([0.3], [0.2]),
        transform=noisy,
        seed=11,
        workers=workers,
        prefetch=prefetch,
    )


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (1, 4), (3, 1), (3, 2), (3, 50)])
def test_threads_change_no_bit(workers, prefetch):
    assert read(random_loader(workers, prefetch).epoch(5)) == read(random_loader(0).epoch(5))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("start", [0, 1, 7, 8])
def test_an_epoch_can_be_joined_anywhere(workers, start):
    loader = random_loader(workers)
    assert read(loader.epoch(2, start)) == read(random_loader(0).epoch(2))[start:]


def test_what_is_drawn_differs_between_batches_and_epochs():
    drawn = []
    loader = data.DataLoader(
        numbered(), 25, transform=lambda images, generator: drawn.append(generator.random()) or images, workers=0
    )
    for epoch in (0, 1):
        list(loader.epoch(epoch))
    assert len(set(drawn)) == 4


def test_iterating_counts_the_epochs():
    loader = random_loader(2)
    assert [read(loader), read(loader)] == [read(loader.epoch(0)), read(loader.epoch(1))]
    loader.next_epoch = 0
    assert read(loader) == read(loader.epoch(0))


def test_two_iterators_at_once():
    loader = random_loader(2)
    assert [pair[0] for pair in zip(read(loader.epoch(0)), read(loader.epoch(1)), strict=True)] == read(loader.epoch(0))
    first, second = loader.epoch(0), loader.epoch(0)
    assert all((a[0] == b[0]).all() for a, b in zip(first, second, strict=True))


# ---- transforms


def test_a_transform_sees_pixels_in_0_1_and_comes_before_normalize():
    seen = []

    def grow(images, generator):
        seen.append((images.dtype, images.shape, float(images.max())))
        return np.repeat(images.astype(np.float64), 2, axis=2)

    normalize = data.Normalize([0.5], [0.25])
    loader = data.DataLoader(numbered(), COUNT, transform=grow, normalize=normalize)
    images, _ = next(loader.epoch(0))
    assert seen == [(np.float32, (COUNT, 1, 1, 3), np.float32(147) * (np.float32(1) / np.float32(255)))]
    assert images.dtype == np.float32 and images.shape == (COUNT, 1, 2, 3)
    assert images[0, 0].tolist() == [[-2] * 3] * 2


class Darker:
    """An object with a method to be called."""

    def __call__(self, images, generator):
        return images / 2

    def darken(self, images, generator):
        return images / 2


@pytest.mark.parametrize(
    "transform",
    [
        *(Darker(), Darker().darken, lambda images, generator: images / 2),
        functools.partial(lambda factor, images, generator: images * factor, 0.5),
        data.Compose(lambda images, generator: images.astype(np.float16), Darker()),
        lambda images, generator: np.asfortranarray(images / 2),
    ],
)
def test_anything_that_can_be_called_is_a_transform(transform):
    images, _ = next(data.DataLoader(numbered(), COUNT, transform=transform).epoch(0))
    plain, _ = next(data.DataLoader(numbered(), COUNT).epoch(0))
    assert images.dtype == np.float32 and images.flags.c_contiguous
    assert (np.abs(images - plain / 2) <= 1e-3).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (lambda images, generator: images[:-1], r"returned images of shape \(24, 1, 1, 3\); it must return \(25, 1, h"),
        (lambda images, generator: images[:, 0], r"shape \(25, 1, 3\)"),
        (lambda images, generator: images[..., :0], r"shape \(25, 1, 1, 0\); .*, at least one pixel"),
        (lambda images, generator: None, "the transform must return an array, not NoneType"),
        (lambda images, generator: images.tolist(), "the transform must return an array, not list"),
        (lambda images, generator: images.astype(np.uint8), "the transform returned uint8; it must return floating-p"),
        (lambda images, generator: images.astype(complex), "the transform returned complex128; it must return float"),
        (lambda images, generator: images.astype(object), "the transform returned object; it must return floating-po"),
    ],
)
def test_a_transform_of_another_shape(workers, transform, text):
    with pytest.raises((ValueError, TypeError), match=text):
        next(data.DataLoader(numbered(), 25, transform=transform, workers=workers).epoch(0))


# ---- errors in threads


class OwnError(RuntimeError):
    pass


def failing(error: BaseException, value: float):
    """A transform that raises error for the batch whose first pixel is this value."""

    def transform(images, generator):
        if numbers(images)[0] == value:
            raise error
        return images

    return transform


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("error", [OwnError("broken"), KeyError("k"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_comes_as_it_was_after_the_batches_before(workers, error):
    batches = data.DataLoader(numbered(), 10, transform=failing(error, 20), workers=workers).epoch(4)
    assert [numbers(images)[0] for images, _ in (next(batches), next(batches))] == [0, 10]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert caught.value is error
    assert error.__notes__[-1] == "DataLoader: in batch 2 of epoch 4 of 'numbered'"
    assert list(batches) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_iteration_in_a_transform_does_not_pass_for_the_end(workers):
    loader = data.DataLoader(numbered(), 10, transform=failing(StopIteration(), 20), workers=workers)
    with pytest.raises(RuntimeError, match="DataLoader: the transform raised StopIteration"):
        list(loader.epoch(0))


# ---- threads: how far ahead, and their end


def test_no_more_than_prefetch_batches_ahead():
    made = []
    loader = data.DataLoader(
        numbered(), 1, transform=lambda images, _: made.append(numbers(images)[0]) or images, workers=2, prefetch=3
    )
    batches = loader.epoch(0)
    for taken in (1, 2, 3):
        next(batches)
        deadline = time.monotonic() + 5
        while len(made) < taken + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert sorted(made) == list(range(taken + 3))
    batches.close()


def test_threads_are_daemons_and_gone_after_the_last_batch():
    batches = data.DataLoader(numbered(), 10, workers=3).epoch(0)
    next(batches)
    assert 0 < len(live_threads()) <= 3 and all(thread.daemon for thread in live_threads())
    assert len(list(batches)) == 4 and live_threads() == []
    assert list(batches) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_close(workers):
    batches = data.DataLoader(numbered(), 1, workers=workers).epoch(0)
    next(batches)
    batches.close()
    assert live_threads() == [] and list(batches) == []
    batches.close()


def test_leaving_a_loop_ends_the_threads():
    for _ in data.DataLoader(numbered(), 1, workers=3).epoch(0):
        assert live_threads()
        break
    assert live_threads() == []


def test_an_error_in_the_consumer_ends_the_threads():
    def consume():
        for _ in data.DataLoader(numbered(), 1, workers=3):
            raise OwnError

    with pytest.raises(OwnError):
        consume()
    assert live_threads() == []


def test_an_iterator_in_a_cycle_is_collected():
    batches = data.DataLoader(numbered(), 1, workers=2).epoch(0)
    next(batches)
    batches.itself = batches
    del batches
    gc.collect()
    assert live_threads() == []


def test_closing_does_not_wait_for_a_stuck_transform():
    release = threading.Event()
    loader = data.DataLoader(
        numbered(), 1, transform=lambda images, _: images if numbers(images) == [0] else (release.wait(60), images)[1]
    )
    batches = loader.epoch(0)
    next(batches)
    start = time.monotonic()
    batches.close()
    waited = time.monotonic() - start
    release.set()
    assert waited < 1.5, waited


def test_nothing_to_read():
    loader = data.DataLoader(numbered(), 10)
    assert list(loader.epoch(0, 5)) == [] and live_threads() == []


# ---- processes: Ctrl-C, and an end with threads at work

SCRIPT = """
import signal, sys, threading, time
import numpy as np
from gpucnn import data

dataset = data.Dataset("flat", np.zeros((64, 1, 200, 200), np.uint8), np.zeros(64, int), ("a",))
"""


def start(script: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_interrupts_the_waiting():
    process = start("""
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
def stuck(images, generator):
    print("stuck", flush=True)
    threading.Event().wait()
next(data.DataLoader(dataset, 1, transform=stuck, workers=1).epoch(0))
""")
    try:
        assert process.stdout.readline() == "stuck\n"
        time.sleep(0.2)  # until the consumer waits, too
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("batches = data.DataLoader(dataset, 32).epoch(0); next(batches)", 0),
        ("batches = data.DataLoader(dataset, 1, workers=3, prefetch=64).epoch(0); next(batches); sys.exit(3)", 3),
        (
            "slow = lambda images, generator: (time.sleep(0.3), images)[1]\n"
            "batches = data.DataLoader(dataset, 1, transform=slow).epoch(0); next(batches)",
            0,
        ),
        (
            "stuck = lambda images, generator: threading.Event().wait()\n"
            "batches = data.DataLoader(dataset, 1, transform=stuck).epoch(0)",
            0,
        ),
    ],
    ids=["idle", "busy", "slow", "stuck"],
)
def test_a_process_ends_with_an_iterator_open(script, code):
    process = start(script)
    try:
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (code, "", "")


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "DataLoader: batch_size must be at least 1, not 0"),
        ({"batch_size": 2.0}, TypeError, "DataLoader: batch_size must be an integer, not 2.0"),
        (
            {"batch_size": 64, "drop_last": True},
            ValueError,
            "batch_size 64 with drop_last leaves no batch of the 50",
        ),
        ({"workers": -1}, ValueError, "DataLoader: workers must be at least 0, not -1"),
        ({"prefetch": 0}, ValueError, "DataLoader: prefetch must be at least 1, not 0"),
        ({"seed": -1}, ValueError, "DataLoader: seed must be at least 0, not -1"),
        ({"augment": data.Shift(2)}, TypeError, r"augment must be an Augment such as Augment\(Shift\(2\)\), not Shift"),
        ({"normalize": (0.5, 0.5)}, TypeError, r"normalize must be a Normalize\(mean, std\), not \(0.5, 0.5\)"),
        (
            {"normalize": data.Normalize([0, 0], [1, 1])},
            ValueError,
            "normalize is for 2 channels, but 'numbered' has",
        ),
        ({"transform": 3}, TypeError, r"transform must be a function f\(images, generator\), not 3"),
        ({"dataset": [1, 2]}, TypeError, "dataset must be a Dataset, not list"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        data.DataLoader(**{"dataset": numbered(), "batch_size": 10, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-1,), ValueError, "DataLoader.epoch: epoch must be at least 0, not -1"),
        ((0, -1), ValueError, "DataLoader.epoch: start must be at least 0, not -1"),
        ((0, 6), ValueError, "DataLoader.epoch: start 6 is past the 5 batches of an epoch"),
        ((0.5,), TypeError, "DataLoader.epoch: epoch must be an integer, not 0.5"),
    ],
)
def test_wrong_epochs(arguments, error, text):
    with pytest.raises(error, match=text):
        data.DataLoader(numbered(), 10).epoch(*arguments)
