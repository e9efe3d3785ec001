"""One step of training: as calls of the library, or as launches that are recorded once and run again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import functional as F
from gpucnn.launch import recording
from gpucnn.launch.plan import Plan
from gpucnn.nn import Module
from gpucnn.optim import GradScaler, Optimizer
from gpucnn.precision import ALL_PRECISIONS, computing, parameters_changed
from gpucnn.tensor import Tensor


class Step:
    """A step in two calls: `backward` leaves the gradients in the parameters, `update` moves these along them.

    - loss: takes the model's scores and the labels and returns a Tensor of one element
    - precision: of gpucnn.precision, in which forward and backward compute; None: what is in force
    - scaler: scales the loss, and skips an update whose gradients are not finite
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
        precision: str | None = None,
        scaler: GradScaler | None = None,
    ):
        if precision is not None and precision not in ALL_PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; use one of {', '.join(ALL_PRECISIONS)}")
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.precision, self.scaler = precision, scaler

    def backward(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """(loss, scores) of a batch, two arrays; the gradients are in `.grad` of the parameters."""
        self.optimizer.zero_grad()
        with nullcontext() if self.precision is None else computing(self.precision):
            scores = self.model(Tensor(images))
            loss = self.loss(scores, labels)
            loss.backward(None if self.scaler is None else self.scaler.seed(loss))
        return loss, scores

    def update(self) -> None:
        """One step of the optimiser."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


@dataclass
class _Recorded:
    """The launches of a step with the arrays that they read and write."""

    images: Any
    labels: Any
    fixed: list[Any]  # what must be as it was when they were recorded
    backward: Plan
    results: tuple[Tensor, Tensor]
    gradients: list[tuple[Tensor, Tensor]]  # each parameter's
    update: Plan | None = None


class CapturedStep(Step):
    """A Step whose kernels are recorded and then launched again, with nearly nothing done in Python between them.

    The first batch is an ordinary step, which compiles and chooses; the second is recorded; those after it are copied
    into the second one's arrays and replayed, bit for bit as ordinary steps: dropout goes on in its stream, and the
    rate, the optimiser's count and its options are read anew. On the engine `native` (GPUCNN_ENGINE) each of the two
    calls is one CUDA graph. Batches of another shape than the first, and the first one after something has changed
    (train or eval, which parameters train, arrays that were replaced), are ordinary steps; options of layers are taken
    as they were. What is recorded keeps all arrays of the step: more memory than a step that frees what it does not
    need any more.

    Gradients may be changed between the two calls, as by `clip_grad_norm`. Results are overwritten by the next batch.
    Everything on the way must be a launch: LeNet-5, AlexNet and the VGG networks are; arithmetic of Tensors is not, so
    the "paper" LeNet-5 is refused. Labels are not looked at by the host; a wrong one makes the loss NaN.
    Raises ValueError for a model on a device without kernels, for a scaler with an optimiser whose steps only the host
    can skip (`skips_on_device`), and in the second batch where a Function computes by something else than launches.
    What a Function of one's own does with arrays is seen on the device "sim" alone.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
        precision: str | None = None,
        scaler: GradScaler | None = None,
    ):
        super().__init__(model, optimizer, loss, precision, scaler)
        if scaler is not None and not optimizer.skips_on_device:
            raise ValueError(
                f"CapturedStep: with these options {type(optimizer).__name__} lets the host decide whether a step is "
                "skipped, so it cannot be recorded; use other options, 'bfloat16', or an ordinary Step"
            )
        if model.device == "cpu":
            raise ValueError("CapturedStep: device 'cpu' launches no kernels; use 'cuda' or 'sim', or an ordinary Step")
        self._recorded: _Recorded | None = None
        self._shape: tuple[int, ...] | None = None  # of the batches to record
        self._warm: list[Any] | None = None  # what was fixed after an ordinary step
        self._running: _Recorded | None = None  # the recorded step whose update is to come

    @property
    def launches(self) -> int:
        """How many launches are recorded."""
        found = self._recorded
        return 0 if found is None else len(found.backward) + (0 if found.update is None else len(found.update))

    def backward(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        self._shape = self._shape or images.shape
        self._running = None
        if images.shape != self._shape:
            return super().backward(images, labels)
        fixed = self._fixed()
        if self._recorded is not None and _same(self._recorded.fixed, fixed):
            return self._replay(self._recorded, images, labels)
        self._recorded = None
        if self._warm is None or not _same(self._warm, fixed):
            self._warm = fixed
            return super().backward(images, labels)
        return self._record(fixed, images, labels)

    def update(self) -> None:
        running = self._running
        if running is not None and not _same(running.fixed, self._fixed()):  # changed after `backward`
            running = self._recorded = None
        if running is None:
            super().update()
            if self._recorded is None:
                self._warm = self._fixed()
            return
        _restore(running.gradients)
        if running.update is None:
            with recording(strict=True) as plan:
                super().update()
            _capture(plan)
            running.update = plan
        else:
            running.update.refresh(super().update)
            running.update.replay()

    def _fixed(self) -> list[Any]:
        """The arrays and choices that a recording depends on."""
        states = [array for state in self.optimizer.state for array in state.values()]
        choices = (
            *(module.training for module in self.model.modules()),
            *(parameter.requires_grad for parameter in self.model.parameters()),
            *(self.optimizer.state_names(group.options) for group in self.optimizer.groups),
        )
        return [choices, *self.model.state_dict().values(), *states]

    def _record(self, fixed: list[Any], images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        own_images, own_labels = self._own(images), self._own(labels)
        parameters_changed()  # so that casts of weights are recorded, too
        with recording(strict=True) as plan:
            results = super().backward(own_images, own_labels)
        _capture(plan)
        gradients = [(each, each.grad) for each in self.optimizer.parameters if each.grad is not None]
        self._recorded = self._running = _Recorded(own_images, own_labels, fixed, plan, results, gradients)
        return results

    def _own(self, batch: Any) -> Any:
        """A copy on the model's device, which later batches overwrite; integers as labels are taken."""
        array = devices.move(devices.as_array(batch), self.model.device)
        copy = devices.empty(array.shape, np.int64 if array.dtype.kind in "iu" else array.dtype, array)
        copy[...] = array
        return copy

    def _replay(self, recorded: _Recorded, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        for own, batch in ((recorded.images, images), (recorded.labels, labels)):
            own[...] = devices.move(devices.as_array(batch), self.model.device)
        for parameter, gradient in recorded.gradients:
            parameter.grad = gradient
        recorded.backward.refresh()
        recorded.backward.replay()
        self._running = recorded
        return recorded.results


def _restore(gradients: list[tuple[Tensor, Tensor]]) -> None:
    """Bring gradients that were replaced into the arrays that the update reads."""
    for parameter, gradient in gradients:
        if parameter.grad is None:
            raise ValueError("CapturedStep.update: a gradient was removed after `backward`; change its values instead")
        if parameter.grad is not gradient:
            gradient.data[...] = parameter.grad.data
            parameter.grad = gradient


def _same(before: list[Any], now: list[Any]) -> bool:
    """Whether choices are equal and arrays the same ones."""
    same_choices = len(before) == len(now) and before[0] == now[0]
    return same_choices and all(a is b for a, b in zip(before[1:], now[1:], strict=True))


def _capture(plan: Plan) -> None:
    if plan.is_native:
        plan.capture()
