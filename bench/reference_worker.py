"""What gpucnn is compared with: the same operations in PyTorch and ONNX Runtime.

On a GPU the functions are called from gpucnn's process. On the CPU this is a program of its own, which imports nothing
of gpucnn: two OpenMP runtimes in one process would falsify both times. Each line of its input is a request in JSON,
each line of its output the answer: {"prepare": SPEC} → {"mean_square"}, {"turn": SECONDS} → {"seconds": […]}, and
{"error"} where something failed.

A SPEC is {"library", "threads", "flush_bytes", "operation", "dtype", "layout", …} with what the operation needs:
a convolution's "x", "w" and "gy" (shapes), "stride", "padding", "dilation" and "groups"; a product's "a" and "b"
(shapes as stored) and "transposed"; a function's "function", "arguments", "x" (shape) and "backward"; an optimiser's
"optimizer", "options", and "parts" arrays of "count" values.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK = (1 << 20) + 7
MOST_CALLS = 10  # of a turn: emptying the caches takes longer than a short call


def random(shape: tuple[int, ...] | list[int], seed: int, dtype: str = "float32") -> np.ndarray:
    """Normal numbers; large arrays repeat a block of a million and seven."""
    return np.resize(block(seed, dtype), tuple(shape))


def block(seed: int, dtype: str = "float32") -> np.ndarray:
    """What `random` repeats: float64, or float32, which 16-bit types are rounded from."""
    return np.random.default_rng(seed).standard_normal(BLOCK, np.float64 if dtype == "float64" else np.float32)


def version(library: str) -> str:
    """The library's version; raises ValueError saying how to get it where it is not installed."""
    if importlib.util.find_spec(library) is None:
        raise ValueError(f"--reference {library}: it is not installed; pip install {library}, or --reference none")
    from importlib.metadata import version as installed

    return installed(library)


def torch_call(torch: Any, spec: dict[str, Any], device: str = "cpu") -> Callable[[], Any]:
    """A function that computes what SPEC says in PyTorch; its arrays are made now."""
    makers = {"matmul": _torch_matmul, "function": _torch_function, "optimizer": _torch_optimizer}
    return makers.get(spec["operation"], _torch_convolution)(torch, spec, device)


def _arrays(torch: Any, spec: dict[str, Any], device: str, names: tuple[str, ...]) -> list[Any]:
    """The arrays of these names, each of a seed of its own, in the layout of SPEC."""
    seeds = {"x": 0, "w": 1, "gy": 2, "a": 0, "b": 1}
    found = []
    for name in names:
        array = torch.from_numpy(random(spec[name], seeds[name], spec["dtype"])).to(
            device, getattr(torch, spec["dtype"])
        )
        found.append(array.contiguous(memory_format=torch.channels_last) if _is_nhwc(spec, array) else array)
    return found


def _is_nhwc(spec: dict[str, Any], array: Any) -> bool:
    return spec["layout"] == "nhwc" and array.dim() == 4


def _torch_convolution(torch: Any, spec: dict[str, Any], device: str) -> Callable[[], Any]:
    geometry = spec["stride"], spec["padding"], spec["dilation"]
    if spec["operation"] == "conv2d_forward":
        x, w = _arrays(torch, spec, device, ("x", "w"))
        return lambda: torch.nn.functional.conv2d(x, w, None, *geometry, spec["groups"])
    into_input = spec["operation"] == "conv2d_backward_input"
    layout = torch.channels_last if spec["layout"] == "nhwc" else torch.contiguous_format
    gy, other = _arrays(torch, spec, device, ("gy", "w" if into_input else "x"))
    unread = spec["x" if into_input else "w"]  # of which PyTorch takes size and layout only
    blank = torch.empty(unread, dtype=other.dtype, device=device, memory_format=layout)
    x, w = (blank, other) if into_input else (other, blank)
    rest = (*geometry, False, [0, 0], spec["groups"], [into_input, not into_input, False])
    return lambda: torch.ops.aten.convolution_backward(gy, x, w, None, *rest)[0 if into_input else 1]


def _torch_matmul(torch: Any, spec: dict[str, Any], device: str) -> Callable[[], Any]:
    pair = zip(_arrays(torch, spec, device, ("a", "b")), spec["transposed"], strict=True)
    a, b = (array.T if transposed else array for array, transposed in pair)
    return lambda: a @ b


def _torch_function(torch: Any, spec: dict[str, Any], device: str) -> Callable[[], Any]:
    (x,) = _arrays(torch, spec, device, ("x",))
    function = getattr(torch.nn.functional, spec["function"])
    if not spec["backward"]:
        return lambda: function(x, *spec["arguments"])
    leaf = x.requires_grad_()
    y = function(leaf, *spec["arguments"])
    gradient = torch.from_numpy(random(tuple(y.shape), 1, spec["dtype"])).to(device)

    def backward() -> Any:
        leaf.grad = None
        y.backward(gradient, retain_graph=True)
        return leaf.grad

    return backward


def _torch_optimizer(torch: Any, spec: dict[str, Any], device: str) -> Callable[[], Any]:
    starts = [torch.from_numpy(random((spec["count"],), seed, spec["dtype"])) for seed in range(spec["parts"])]
    values = [start.to(device).requires_grad_() for start in starts]
    for value in values:
        value.grad = value.detach().clone()
    optimizer = getattr(torch.optim, spec["optimizer"])(values, **spec["options"])

    def step() -> Any:
        optimizer.step()
        return values[0]

    return step


def onnxruntime_call(onnxruntime: Any, spec: dict[str, Any]) -> Callable[[], Any]:
    """The same in ONNX Runtime, which has forward convolution in NCHW; raises ValueError for all else."""
    if spec["operation"] != "conv2d_forward" or spec["layout"] != "nchw":
        raise ValueError("onnxruntime computes forward convolutions in NCHW only")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(conv_model(spec), options, providers=["CPUExecutionProvider"])
    x, w = (random(spec[name], seed, spec["dtype"]) for seed, name in enumerate(("x", "w")))
    return lambda: session.run(None, {"x": x, "w": w})[0]


def conv_model(spec: dict[str, Any]) -> bytes:
    """An ONNX model of one Conv node with the inputs x and w, as protocol buffers."""
    padding = [*spec["padding"], *spec["padding"]]
    ints = {"strides": spec["stride"], "pads": padding, "dilations": spec["dilation"]}
    attributes = [_field(1, name) + b"".join(_field(8, v) for v in vs) + _field(20, 7) for name, vs in ints.items()]
    attributes.append(_field(1, "group") + _field(3, spec["groups"]) + _field(20, 2))
    node = _field(1, "x") + _field(1, "w") + _field(2, "y") + _field(4, "Conv")
    node += b"".join(_field(5, attribute) for attribute in attributes)
    kind = {"float32": 1, "float64": 11}[spec["dtype"]]
    graph = _field(1, node) + _field(2, "conv")
    graph += _field(11, _value("x", kind, spec["x"])) + _field(11, _value("w", kind, spec["w"]))
    graph += _field(12, _value("y", kind, spec["gy"]))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


def _value(name: str, kind: int, sizes: list[int]) -> bytes:
    """A ValueInfoProto: a name, an element type and a shape."""
    shape = b"".join(_field(1, _field(1, size)) for size in sizes)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer: a whole number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def make_call(spec: dict[str, Any]) -> Callable[[], Any]:
    """A function that computes what SPEC says on the CPU, with its threads."""
    version(spec["library"])
    library = importlib.import_module(spec["library"])
    if spec["library"] == "onnxruntime":
        return onnxruntime_call(library, spec)
    library.set_num_threads(spec["threads"])
    return torch_call(library, spec)


def mean_square(values: np.ndarray) -> float:
    """What tells whether two libraries compute the same."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return float(flat @ flat) / max(flat.size, 1)


def take_turn(call: Callable[[], Any], seconds: float, flush: Callable[[], Any]) -> list[float]:
    """Seconds of single calls, until `seconds` have passed, but not of many; before each the caches are emptied."""
    found: list[float] = []
    while not found or (sum(found) < seconds and len(found) < MOST_CALLS):
        flush()
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def flusher(library: str, size: int) -> Callable[[], Any]:
    """A function that writes `size` bytes, where it can with the library's own threads: they should not fall asleep."""
    if library == "torch":
        torch = importlib.import_module("torch")
        values = torch.zeros(size, dtype=torch.uint8)
        return lambda: values.fill_(1)
    buffer = np.zeros(size, np.uint8)
    return lambda: buffer.fill(1)


class Server:
    """Answers requests; keeps what was prepared last."""

    def __init__(self) -> None:
        self.call: Callable[[], Any] = lambda: None
        self.flush: Callable[[], Any] = lambda: None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "turn" in request:
            return {"seconds": take_turn(self.call, request["turn"], self.flush)}
        spec = request["prepare"]
        self.call = lambda: None  # gives the old arrays back
        self.call = make_call(spec)
        self.flush = flusher(spec["library"], spec["flush_bytes"])
        result = self.call()
        return {"mean_square": mean_square(result if isinstance(result, np.ndarray) else result.detach().numpy())}


def serve() -> None:
    """Answer each line of input; a failure is an answer too."""
    server = Server()
    for line in sys.stdin:
        try:
            reply = server.answer(json.loads(line))
        except Exception as error:  # whatever it is, the other requests go on
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            reply = {"error": text}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve()
