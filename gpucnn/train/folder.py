"""RunFolder: the directory of a run, in which nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpucnn import checkpoint, files
from gpucnn.train.trainer import Trainer

PICTURES = ("filters.png", "predictions.png", "curves.png")


class RunFolder:
    """A directory with checkpoint.safetensors (the last state), best.safetensors, metrics.jsonl and pictures.

    checkpoint.safetensors alone is the truth: metrics.jsonl is written anew from it, and best.safetensors, where it
    names one, was written before it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.best = self.path / "best.safetensors"
        self.metrics = self.path / "metrics.jsonl"

    def __str__(self) -> str:
        return str(self.path)

    def check(self, resume: bool, overwrite: bool) -> None:
        """Raise OSError unless files can be made here, ValueError if that takes resume or overwrite; make nothing."""
        if resume and overwrite:
            raise ValueError("--resume continues the run in a folder, --overwrite replaces it; choose one of them")
        require_writable_folder(self.path)
        found = [file.name for file in (self.checkpoint, self.best, self.metrics) if file.exists()]
        if found and not (resume or overwrite):
            raise ValueError(
                f"{self} holds a run already ({', '.join(found)}); continue it with --resume, replace it with "
                "--overwrite, or choose another --out"
            )

    def load(self) -> checkpoint.Checkpoint | None:
        """The last state, or None where there is none yet; raises CheckpointError if it is damaged."""
        return checkpoint.load(self.checkpoint) if self.checkpoint.exists() else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder made, swept of what killed processes left, and kept from other processes inside."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(descriptor, self.path)
            files.sweep(self.path)
            yield
        finally:
            os.close(descriptor)  # gives up the lock

    def start(self, trainer: Trainer, extra: dict[str, Any]) -> None:
        """Store the state before the first step; only then does what an earlier run left go."""
        self.save(trainer, extra)
        for name in (self.best.name, self.metrics.name, *PICTURES):
            (self.path / name).unlink(missing_ok=True)

    def save(self, trainer: Trainer, extra: dict[str, Any]) -> None:
        """Store the last state; weights that are not finite never replace good ones."""
        trainer.require_finite_weights()
        checkpoint.save(self.checkpoint, *pack(trainer, extra))

    def save_best(self, trainer: Trainer, extra: dict[str, Any]) -> None:
        """Store the weights as the best so far, without what only going on needs."""
        tensors, metadata = pack(trainer, extra)
        weights = {name: array for name, array in tensors.items() if name.startswith("model/")}
        checkpoint.save(self.best, weights, {**metadata, "state": None})

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """One line of JSON an epoch."""
        lines = [json.dumps(entry) + "\n" for entry in history]
        files.write_atomically(self.metrics, "".join(lines).encode())


def pack(trainer: Trainer, extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and metadata of everything that training goes on from; `extra` is what does not change in a run."""
    return checkpoint.pack(
        trainer.model, trainer.optimizer, {**extra, "config": trainer.config.as_dict(), "state": trainer.state()}
    )


def unpack(stored: checkpoint.Checkpoint, trainer: Trainer) -> None:
    """The inverse of `pack`; raises CheckpointError for a state that does not fit."""
    metadata = checkpoint.unpack(stored, trainer.model, trainer.optimizer)
    try:
        trainer.load_state(metadata["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{stored.path}: its state is damaged ({error!r}); start anew") from error


def require_writable_folder(path: Path) -> None:
    """Raise OSError unless `path` is a folder that files can be made in, or one that can be made."""
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not existing.is_dir():
        what = "a file" if existing.exists() else "a broken link"
        raise NotADirectoryError(f"{path}: {existing} is {what}, not a folder; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write to {existing}; choose another folder")


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(f"{path}: another process is training in this folder; choose another folder") from None
        # a file system without locks: nothing keeps others away
