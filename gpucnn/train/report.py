"""What a run tells while it goes on: nothing, or lines and progress bars on the console."""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """Progress over the batches of one pass; this one shows nothing."""

    def step(self, loss: float, accuracy: float) -> None:
        """One more batch is done; the mean loss and accuracy so far."""

    def close(self) -> None:
        """The pass is over or broken off."""


class Report:
    """Listener to a run that does nothing; a subclass overrides what it wants to hear."""

    def message(self, text: str) -> None:
        """A line about what is done."""

    def warning(self, text: str) -> None:
        """A line about something that may not be as wanted."""

    def epoch(self, entry: dict[str, Any], epochs: int) -> None:
        """An epoch is over and stored; `entry` is its line of metrics.jsonl."""

    def bar(self, title: str, total: int, done: int = 0) -> Bar:
        """A pass over `total` batches begins, `done` of them already behind it."""
        return Bar()


class ConsoleBar(Bar):
    """A tqdm bar on stderr; silent where that is no terminal."""

    def __init__(self, title: str, total: int, done: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=title, total=total, initial=done, disable=None, leave=False, unit="batch")

    def step(self, loss: float, accuracy: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


class Console(Report):
    """Prints one line an epoch on stdout, warnings on stderr, and bars on a terminal."""

    def message(self, text: str) -> None:
        _write(text)

    def warning(self, text: str) -> None:
        _write(f"warning: {text}", file=sys.stderr)

    def epoch(self, entry: dict[str, Any], epochs: int) -> None:
        _write(epoch_line(entry, epochs))

    def bar(self, title: str, total: int, done: int = 0) -> Bar:
        return ConsoleBar(title, total, done)


def _write(text: str, file: Any = None) -> None:
    """Print a line above a bar that may be there."""
    from tqdm import tqdm

    tqdm.write(text, file=file)
    (file or sys.stdout).flush()


def epoch_line(entry: dict[str, Any], epochs: int) -> str:
    """An entry of metrics.jsonl in words; with a validation part its accuracy and the gap to it."""
    parts = [
        f"epoch {entry['epoch']:>{len(str(epochs))}}/{epochs}",
        f"loss {entry['train_loss']:.4f}",
        f"accuracy {entry['train_accuracy']:.4f}",
    ]
    if "validation_accuracy" in entry:
        gap = entry["train_accuracy"] - entry["validation_accuracy"]
        parts += [
            f"validation loss {entry['validation_loss']:.4f}",
            f"accuracy {entry['validation_accuracy']:.4f} (gap {gap:+.4f})",
        ]
    return "  ".join([*parts, f"lr {entry['lr']:.3g}", f"{entry['images_per_second']:,.0f} images/s"])
