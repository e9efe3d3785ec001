"""The libraries beside gpucnn: on the CPU each in a process of its own, on a GPU in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np

from gpucnn.bench import peer, reference_worker, timing
from gpucnn.bench.policies import HALVES

LIBRARIES = ("torch", "onnxruntime", "none")
SAME = 1e-3  # of the mean square: what another problem, or another layout of it, would exceed


class ReferenceFailed(Exception):
    """The library cannot compute this; the text says why."""


class Worker:
    """A process that computes with one library on the CPU, in turns."""

    def __init__(self, library: str) -> None:
        reference_worker.version(library)
        self.library = library
        self._process: subprocess.Popen[str] | None = None

    def prepare(self, spec: dict[str, Any], mean_square: float | None) -> None:
        """Build a problem; raises ReferenceFailed if that fails, or if its answer is not of this mean square."""
        found = self._ask({"prepare": {**spec, "library": self.library}})["mean_square"]
        if mean_square is not None and not abs(found - mean_square) <= SAME * max(found, mean_square):
            raise ReferenceFailed(f"computes something else: mean square {found:.6g} instead of {mean_square:.6g}")

    def turn(self, seconds: float) -> list[float]:
        """Seconds of single calls, made until `seconds` have passed, with emptied caches."""
        return self._ask({"turn": seconds})["seconds"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self.close()
            raise ReferenceFailed(f"the {self.library} process ended with exit code {code}")
        reply = json.loads(line)
        if "error" in reply:
            raise ReferenceFailed(reply["error"])
        return reply

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            # In a session of its own: Ctrl-C is for the command, which ends it.
            self._process = subprocess.Popen(
                [sys.executable, reference_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def on_gpu(
    spec: dict[str, Any], device: str, clock: timing.Clock, flush: Callable[[], Any] | None, seconds: float
) -> dict[str, float | None]:
    """Milliseconds of PyTorch (cuDNN, cuBLAS) in both layouts, in float32 with TF32 off and on; None where it fails."""
    module = peer.torch(device)
    found: dict[str, float | None] = {}
    layouts = ("nchw", "nhwc") if spec["operation"].startswith("conv") else ("nchw",)
    half = HALVES.get(spec["dtype"])
    switched = spec["operation"].startswith(("conv", "matmul")) and half is None
    for layout in layouts:
        for tf32 in (False, True) if switched else (False,):
            with peer.tf32(module, tf32), ExitStack() if spec.get("backward") else module.no_grad():
                name = reference_name(spec["operation"], layout, tf32) + (f"_{half}" if half else "")
                try:
                    call = reference_worker.torch_call(module, {**spec, "layout": layout}, device)
                    found[name] = timing.measure(call, clock, seconds, flush).median * 1e3
                except module.cuda.OutOfMemoryError:
                    found[name] = None
        peer.free_memory(device)
    return found


def reference_name(operation: str, layout: str, tf32: bool) -> str:
    """The name of a reference on a GPU."""
    library = f"cudnn_{layout}" if operation.startswith("conv") else "cublas" if operation == "matmul" else "torch"
    return library + "_tf32" * tf32


def opened(library: str, device: str) -> AbstractContextManager[Worker | None]:
    """The process of a library for the CPU; None where there is nothing to alternate with."""
    if library == "none" or device != "cpu":
        return nullcontext()
    return Worker(library)


def mean_square(result: Any) -> float:
    """What a reference's answer must agree with."""
    return reference_worker.mean_square(np.asarray(result))
