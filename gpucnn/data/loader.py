"""Batches of a data set: shuffled, augmented and normalised in threads ahead of their use.

Nothing random is remembered between batches: the order of an epoch follows from (seed, epoch), what happens
to a batch from (seed, epoch, batch). So the number of threads changes no bit, and resuming needs no more than
these numbers.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from gpucnn import _C
from gpucnn.data.checks import check_integer
from gpucnn.data.dataset import Dataset
from gpucnn.data.transforms import Augment, Normalize

Batch = tuple[np.ndarray, np.ndarray]  # images float32 (B, C, H, W), labels int64 (B,)
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# Purposes of random streams, so that no two of them are the same.
_ORDER, _BATCH = 0, 1

# Seconds for which closing waits for threads in the middle of a batch; a slower one ends by itself later.
_PATIENCE = 0.8


class Batches(Protocol):
    """An iterator of (images, labels) that can be closed before its end."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class DataLoader:
    """Batches (images float32 (B, C, H, W), labels int64 (B,)) of a data set.

    dataset: the images, a Dataset
    batch_size: images per batch, >= 1; the last batch is shorter where they do not divide evenly
    shuffle: a new order in each epoch, from (seed, epoch); otherwise the order of the data set
    drop_last: leave out a short last batch
    augment: random shifts, crops and mirrors, an Augment, or None
    normalize: a Normalize for the data set's channels; None leaves pixels in [0, 1]
    transform: any function f(images, generator) -> images, or None; called after augment and before normalize
        with pixels in [0, 1], float32 (B, C, H, W), and a numpy Generator; returns floating-point (B, C, any, any),
        else the iterator raises TypeError or ValueError. With workers it runs in several threads.
    seed: of all that is random here, >= 0
    workers: threads that prepare batches; 0 prepares each when it is asked for, in the calling thread
    prefetch: how many batches are prepared ahead at most, >= 1

    Iterating gives one epoch after the other, from the attribute next_epoch on.
    Raises TypeError or ValueError for other values, a Normalize of other channels, or a drop_last that leaves
    nothing.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        augment: Augment | None = None,
        normalize: Normalize | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        workers: int = 2,
        prefetch: int = 4,
    ) -> None:
        _check_types(dataset, augment, normalize, transform)
        self.dataset = dataset
        self.batch_size = check_integer("DataLoader", "batch_size", batch_size, 1)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.augment = augment or Augment()
        self.normalize = normalize
        self.transform = transform
        self.seed = check_integer("DataLoader", "seed", seed, 0)
        self.workers = check_integer("DataLoader", "workers", workers, 0)
        self.prefetch = check_integer("DataLoader", "prefetch", prefetch, 1)
        self.next_epoch = 0
        if len(self) == 0:
            raise ValueError(
                f"DataLoader: batch_size {self.batch_size} with drop_last leaves no batch of "
                f"the {len(dataset)} images of {dataset.name!r}; lower batch_size or keep the last batch"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Batches:
        batches = self.epoch(self.next_epoch)
        self.next_epoch += 1
        return batches

    def epoch(self, epoch: int, start: int = 0) -> Batches:
        """The batches start, start + 1, ... of an epoch; the same bits each time, whatever was read before.

        close() on the iterator stops its threads early; so does letting go of it.
        An error in a thread is raised by the iterator as it was, with a note that names the batch.
        Raises TypeError or ValueError unless epoch >= 0 and 0 <= start <= len(self).
        """
        epoch = check_integer("DataLoader.epoch", "epoch", epoch, 0)
        start = check_integer("DataLoader.epoch", "start", start, 0)
        if start > len(self):
            raise ValueError(f"DataLoader.epoch: start {start} is past the {len(self)} batches of an epoch")
        prepare = partial(self._prepare, epoch, self._order(epoch))
        todo = range(start, len(self))
        if self.workers == 0:
            return (prepare(index) for index in todo)
        return _Prefetcher(prepare, todo, self.workers, self.prefetch)

    def _order(self, epoch: int) -> np.ndarray:
        """The indices of the images in the order of the epoch, int64 (N,)."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return self._generator(_ORDER, epoch).permutation(len(self.dataset))

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _prepare(self, epoch: int, order: np.ndarray, index: int) -> Batch:
        """Batch index of an epoch; runs in any thread."""
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        try:
            return self._images(chosen, self._generator(_BATCH, epoch, index)), self.dataset.labels[chosen]
        except BaseException as error:
            error.add_note(f"DataLoader: in batch {index} of epoch {epoch} of {self.dataset.name!r}")
            raise

    def _images(self, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The chosen images, float32 (B, C, h, w): gathered, augmented, transformed, normalised."""
        if self.transform is None:
            return self._gather(chosen, generator, self.normalize)
        images = _call(self.transform, self._gather(chosen, generator, None), generator)
        return images if self.normalize is None else self.normalize(images)

    def _gather(self, chosen: np.ndarray, generator: np.random.Generator, normalize: Normalize | None) -> np.ndarray:
        """The chosen images moved and mirrored as drawn, scaled to [0, 1] and normalised, in one pass."""
        data = self.dataset
        plan = self.augment.draw(len(chosen), data.image_size, generator)
        normalize = normalize or Normalize([0] * data.channels, [1] * data.channels)
        scale, shift = normalize.coefficients()
        scale, shift = (scale / 255).astype(np.float32), shift.astype(np.float32)
        images = np.empty((len(chosen), data.channels, *plan.size), dtype=np.float32)
        fill = self.augment.fill
        _C.gather_batch(data.images, chosen, images, plan.offsets, plan.flips, scale, shift, fill)
        return images


def _check_types(dataset: object, augment: object, normalize: object, transform: object) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(f"DataLoader: dataset must be a Dataset, not {type(dataset).__name__}")
    if augment is not None and not isinstance(augment, Augment):
        raise TypeError(f"DataLoader: augment must be an Augment such as Augment(Shift(2)), not {augment!r}")
    if transform is not None and not callable(transform):
        raise TypeError(f"DataLoader: transform must be a function f(images, generator), not {transform!r}")
    if normalize is None:
        return
    if not isinstance(normalize, Normalize):
        raise TypeError(f"DataLoader: normalize must be a Normalize(mean, std), not {normalize!r}")
    if len(normalize.mean) != dataset.channels:
        raise ValueError(
            f"DataLoader: normalize is for {len(normalize.mean)} channels, but {dataset.name!r} has "
            f"{dataset.channels}; use Normalize(*dataset.statistics())"
        )


def _call(transform: Transform, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What a user's transform makes of the images, as float32 (B, C, any, any); TypeError or ValueError for others."""
    try:
        changed = transform(images, generator)
    except StopIteration as error:  # would end the epoch as if all had been read
        raise RuntimeError("DataLoader: the transform raised StopIteration") from error
    if not isinstance(changed, np.ndarray):
        raise TypeError(f"DataLoader: the transform must return an array, not {type(changed).__name__}")
    if changed.dtype.kind != "f":  # whole numbers would be pixels from 0 to 255, or be cut off
        raise TypeError(
            f"DataLoader: the transform returned {changed.dtype}; it must return floating-point pixels in [0, 1], "
            "such as images.astype(np.float32) / 255"
        )
    if changed.ndim != 4 or changed.shape[:2] != images.shape[:2] or 0 in changed.shape:
        rule = f"it must return ({images.shape[0]}, {images.shape[1]}, height, width), at least one pixel"
        raise ValueError(f"DataLoader: the transform returned images of shape {changed.shape}; {rule}")
    return np.ascontiguousarray(changed, dtype=np.float32)


class _Prefetcher:
    """The batches of todo in order, each made by prepare(index) in one of several daemon threads.

    At most prefetch batches are asked for and not yet taken. Each has its own queue for the answer, so the
    order holds whichever thread is first; Ctrl-C interrupts the waiting for it. The threads do not know this
    object, so it goes when nobody holds it. It is then closed, as it is when the interpreter ends: a thread
    coming back from the extension after that would abort the process.
    """

    def __init__(self, prepare: Callable[[int], Batch], todo: range, workers: int, prefetch: int) -> None:
        self._todo = iter(todo)
        self._tasks: SimpleQueue = SimpleQueue()
        self._answers: deque[SimpleQueue] = deque()
        for _ in range(prefetch):
            self._ask()
        stop = threading.Event()
        work = partial(_work, prepare, self._tasks, stop)
        count = min(workers, len(self._answers))
        threads = [threading.Thread(target=work, name=f"gpucnn-data-{i}", daemon=True) for i in range(count)]
        self._stop_threads = weakref.finalize(self, _stop_threads, threads, self._tasks, stop)
        for thread in threads:
            thread.start()

    def _ask(self) -> None:
        """Puts the next batch, if there is one, on the list of tasks."""
        for index in self._todo:
            self._answers.append(SimpleQueue())
            self._tasks.put((index, self._answers[-1]))
            return

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._answers:
            raise StopIteration
        try:
            batch = _receive(self._answers.popleft())
        except BaseException:
            self.close()
            raise
        self._ask()
        if not self._answers:
            self.close()
        return batch

    def close(self) -> None:
        """Ends the iteration and its threads; waits for them for less than a second."""
        self._answers.clear()
        self._stop_threads()


def _receive(answer: SimpleQueue) -> Batch:
    """The batch, or raises what its thread did."""
    batch, error = answer.get()
    try:
        if error is not None:
            raise error
        return batch
    finally:
        del error  # else error, its traceback and this frame would keep one another


def _work(prepare: Callable[[int], Batch], tasks: SimpleQueue, stop: threading.Event) -> None:
    while _work_once(prepare, tasks, stop):
        pass


def _work_once(prepare: Callable[[int], Batch], tasks: SimpleQueue, stop: threading.Event) -> bool:
    """Does one task; False at the end. A function of its own, so that a waiting thread holds no batch."""
    task = tasks.get()
    if task is None or stop.is_set():
        return False
    index, answer = task
    try:
        answer.put((prepare(index), None))
    except BaseException as error:  # whatever it is, the consumer raises it
        answer.put((None, error))
    return True


def _stop_threads(threads: list[threading.Thread], tasks: SimpleQueue, stop: threading.Event) -> None:
    stop.set()
    for _ in threads:
        tasks.put(None)
    deadline = time.monotonic() + _PATIENCE
    for thread in threads:
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
