"""What a network costs: a row for each layer with values, weights and multiply-adds, and the memory of training.

`summarize` runs one image of zeros through the network and watches its layers. The rows count one image; only the
memory depends on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gpucnn import nn
from gpucnn.ops.shapes import pair
from gpucnn.tensor import Function, Tensor, is_grad_enabled, topological_order
from gpucnn.train.evaluation import evaluating

OPTIMIZER = "SGD with momentum"  # of the memory model: one array for each trained parameter


@dataclass(frozen=True)
class LayerSummary:
    """One use of one layer on one image.

    - name: its dotted name in the network; type: its class; output_shape: without the batch
    - activation_values: numbers it stores; weights, biases: its parameters; multiply_adds: products added into sums
    - followed_by: the types of the layers after it that store nothing of their own (ReLU, Dropout, …)
    - note: border rows and columns that no window reaches, or whose parameters these are
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    activation_values: int
    weights: int
    biases: int
    multiply_adds: int
    followed_by: tuple[str, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row as a dictionary that JSON can hold."""
        return asdict(self) | {"output_shape": list(self.output_shape), "followed_by": list(self.followed_by)}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes held at the worst moment of a training step, in the backward pass; `total` is their sum.

    - weights: parameters and buffers
    - gradients, optimizer: one array for each trained parameter (the optimiser is SGD with momentum)
    - activations: the images and everything the tape keeps for backward: what an operation's backward reads
      (a convolution's input, a ReLU's output, the places of maxima at 8 bytes a value, the scale of response norm)
    - transient: what gradients in flight, an operation's output's and input's, add at the worst moment; activations
      are freed as backward goes on, so this is often nothing
    Left out: what does not grow with the network, such as Python itself, prefetched batches and the blocks in which
    convolutions work, about a megabyte a thread.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.transient


@dataclass(frozen=True)
class ModelSummary:
    """What `summarize` found. A parameter that several layers share counts once in the totals.

    - total_activation_values: the images' pixels and the outputs of all layers but those that can write over their
      input: layers without parameters that neither mix neighbours nor change the number of values (ReLU, dropout,
      flatten, adaptive pooling to the size there already is). The rows' activation_values add up to it.
    - value_bytes: bytes of one value
    """

    model: str
    input_shape: tuple[int, ...]
    batch_size: int
    value_bytes: int
    layers: tuple[LayerSummary, ...]
    total_weights: int
    total_biases: int
    trainable_parameters: int
    memory: TrainingMemory

    @property
    def total_parameters(self) -> int:
        return self.total_weights + self.total_biases

    @property
    def total_multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def total_activation_values(self) -> int:
        return sum(layer.activation_values for layer in self.layers)

    @property
    def peak_training_bytes(self) -> int:
        return self.memory.total

    def to_json(self) -> dict[str, Any]:
        """The summary as a dictionary that JSON can hold."""
        return {
            "model": self.model,
            "input_shape": list(self.input_shape),
            "total_parameters": self.total_parameters,
            "total_weights": self.total_weights,
            "total_biases": self.total_biases,
            "trainable_parameters": self.trainable_parameters,
            "total_multiply_adds": self.total_multiply_adds,
            "total_activation_values": self.total_activation_values,
            "total_activation_bytes": self.total_activation_values * self.value_bytes,
            "batch_size": self.batch_size,
            "peak_training_bytes": self.peak_training_bytes,
            "training_memory": asdict(self.memory),
            "optimizer": OPTIMIZER,
            "layers": [layer.to_json() for layer in self.layers],
        }


def summarize(model: nn.Module, batch_size: int = 1, *, input_shape: tuple[int, ...] | None = None) -> ModelSummary:
    """The rows, totals and training memory of a network. Its state, mode and gradients stay as they are.

    multiply_adds = weights · positions at which they are used: exact for convolutions (also grouped and by table),
    linear layers and normalisation; adding biases, pooling, response norm and activations count none.

    - model: a Network, or any Module together with input_shape; build a large one within `nn.init.skipped()`
    - batch_size: images a training step, for the memory; input_shape: (channels, height, width) of one image
    Raises ValueError without an input_shape, for a batch_size below 1, and within no_grad(), where no tape is kept.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"summarize: batch_size is {batch_size!r}; it must be a positive integer")
    if not is_grad_enabled():
        raise ValueError("summarize: nothing is recorded within no_grad(), so memory is unknown; call it outside")
    shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if shape is None:
        raise ValueError(f"summarize: {type(model).__name__} has no input_shape; pass input_shape=(C, H, W)")
    parameters = dict(model.named_parameters())
    dtype = next((parameter.dtype for parameter in parameters.values()), np.dtype(np.float32))
    images = Tensor(np.zeros((1, *shape), dtype))
    recorder = _Recorder(images)
    with evaluating(model), recorder.watching(model):
        outputs = _tensors(model(images))
    biases = sum(parameter.size for name, parameter in parameters.items() if _is_bias(name))
    return ModelSummary(
        model=getattr(model, "name", type(model).__name__),
        input_shape=tuple(shape),
        batch_size=batch_size,
        value_bytes=dtype.itemsize,
        layers=tuple(recorder.layers),
        total_weights=sum(parameter.size for parameter in parameters.values()) - biases,
        total_biases=biases,
        trainable_parameters=sum(parameter.size for parameter in parameters.values() if parameter.requires_grad),
        memory=_training_memory(model, outputs, recorder.dropped * dtype.itemsize, batch_size),
    )


class _Recorder:
    """Collects a row for every use of a layer, in the order in which they run."""

    def __init__(self, images: Tensor) -> None:
        shape = images.shape[1:]
        self.layers = [LayerSummary("input", "Input", shape, math.prod(shape), 0, 0, 0)]
        self.owners: dict[int, str] = {}  # id of a parameter → the name of the first row that shows it
        self.dropped = 0  # values that dropout layers would store in training

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Inside this context each use of a layer of `model` adds its row."""
        named = {id(module): (name, module) for name, module in _layers("", model)}
        handles = [module.register_forward_hook(self._hook(name)) for name, module in named.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        return lambda module, inputs, output: self._add(name, module, _tensors(inputs), _tensors(output))

    def _add(self, name: str, module: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        kind = type(module).__name__
        if isinstance(module, nn.Dropout) and module.p > 0:
            self.dropped += outputs[0].size
        if _stores_nothing(module, inputs, outputs):
            self.layers[-1] = replace(self.layers[-1], followed_by=(*self.layers[-1].followed_by, kind))
            return
        own = _own_parameters(module)
        biases = sum(parameter.size for key, parameter in own.items() if _is_bias(key))
        weights = sum(parameter.size for parameter in own.values()) - biases
        shape = outputs[0].shape[1:]
        positions = _positions(module, inputs[0].shape[1:], shape)
        values = 0 if _has_trained_parts(module) else sum(tensor.size for tensor in outputs if tensor.dtype.kind == "f")
        note = "; ".join(filter(None, (self._shared(name, own), _unused_border(module, inputs[0].shape))))
        self.layers.append(LayerSummary(name, kind, shape, values, weights, biases, weights * positions, note=note))

    def _shared(self, name: str, own: dict[str, nn.Parameter]) -> str:
        """Says so if the row's parameters were shown before."""
        seen = [self.owners[id(parameter)] for parameter in own.values() if id(parameter) in self.owners]
        for parameter in own.values():
            self.owners.setdefault(id(parameter), name)
        return f"parameters shared with the first {seen[0]}" if seen else ""


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What makes a row: modules without parts, and modules that have parameters of their own.

    Parts without parameters of a module that has some (the squashing inside LeNet's sub-sampling) belong to its row.
    """
    children = list(module.named_children())
    own = _own_parameters(module)
    if _has_trained_parts(module) or not own:
        for child_name, child in children:
            yield from _layers(f"{name}.{child_name}" if name else child_name, child)
    if own or not children:
        yield name or type(module).__name__, module


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {key: value for key, value in vars(module).items() if isinstance(value, nn.Parameter)}


def _has_trained_parts(module: nn.Module) -> bool:
    return any(True for _, child in module.named_children() for _ in child.parameters())


def _positions(module: nn.Module, x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """How many times one image meets each weight; x and y are shapes without the batch."""
    if isinstance(module, nn.LocallyConnected2d):
        return 1
    if isinstance(module, nn.Linear):
        return math.prod(y[:-1])
    return math.prod(x[1:] if isinstance(module, nn.ConvTranspose2d) else y[1:])


def _is_bias(name: str) -> bool:
    return name.split(".")[-1] == "bias"


def _stores_nothing(module: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether the layer could write over its input: ModelSummary says which can."""
    if _own_parameters(module) or isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.LocalResponseNorm)):
        return False
    return sum(tensor.size for tensor in inputs) == sum(tensor.size for tensor in outputs)


def _unused_border(module: nn.Module, x: tuple[int, ...]) -> str:
    """Names the rows and columns of the padded input that are left over where the stride does not divide evenly."""
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) or getattr(module, "ceil_mode", False):
        return ""
    window = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    kernels, strides, paddings, dilations = (pair("summarize", "window", value, 0) for value in window)
    rows, columns = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) % stride
        for size, kernel, stride, padding, dilation in zip(x[-2:], kernels, strides, paddings, dilations, strict=True)
    )
    counts = ((rows, "row"), (columns, "column"))
    parts = [f"{count} {noun}{'s' if count > 1 else ''}" for count, noun in counts if count]
    return f"border: {' and '.join(parts)} unused" if parts else ""


def _tensors(value: Any) -> list[Tensor]:
    """The Tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _training_memory(model: nn.Module, outputs: list[Tensor], dropped: int, batch_size: int) -> TrainingMemory:
    """The memory of a step, from the tape of one image that ends in `outputs`; dropped: what dropout adds, in bytes."""
    state = {id(_owner(array)): array.nbytes for array in model.state_dict().values()}
    trained = sum(parameter.data.nbytes for parameter in model.parameters() if parameter.requires_grad)
    functions = [(function, _kept(function, state, batch_size)) for function in _tape(outputs)]
    results = {id(_owner(output.data)): _batch_bytes(output.data, batch_size) for output in outputs}
    activations = sum(_together(functions, results).values())
    peak = activations  # what is kept shrinks as backward goes on, while gradients flow
    for position, (function, _) in enumerate(functions):
        flowing = [function, *(source for source in function.sources if isinstance(source, Function))]
        values = sum(math.prod(each.output_shape) * _images(each.output_shape, batch_size) for each in flowing)
        left = sum(_together(functions[position:], {}).values())
        peak = max(peak, left + values * outputs[0].dtype.itemsize)
    dropped *= batch_size
    return TrainingMemory(sum(state.values()), trained, trained, activations + dropped, peak - activations)


def _tape(outputs: list[Tensor]) -> list[Function]:
    """Every recorded function behind `outputs`, in the order in which backward visits them."""
    order: dict[Function, None] = {}
    for tensor in outputs:
        if tensor._function is not None:
            order.update(dict.fromkeys(topological_order(tensor._function)))
    return list(order)


def _kept(function: Function, state: dict[int, int], batch_size: int) -> dict[int, int]:
    """The bytes of each array that a function keeps for backward, by its identity; parameters are not counted."""
    arrays = {id(_owner(array)): _batch_bytes(array, batch_size) for array in _arrays(vars(function))}
    return {key: size for key, size in arrays.items() if key not in state}


def _together(functions: list[tuple[Function, dict[int, int]]], others: dict[int, int]) -> dict[int, int]:
    """What functions keep, each array once."""
    return {key: size for part in (others, *(kept for _, kept in functions)) for key, size in part.items()}


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """The arrays in what a function keeps."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _arrays(part)


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory this one is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _batch_bytes(array: np.ndarray, batch_size: int) -> int:
    """The memory that an array of one image's tape takes in a batch: what belongs to images has them first."""
    return _owner(array).nbytes * _images(array.shape, batch_size)


def _images(shape: tuple[int, ...], batch_size: int) -> int:
    return batch_size if shape[:1] == (1,) else 1


def print_summary(summary: ModelSummary, console: Console | None = None) -> None:
    """Print the rows as a table, the totals, and the training memory; nothing is cut off where the output is narrow."""
    console = Console() if console is None else console
    table = _table(summary)
    console.width = max(console.width, Measurement.get(console, console.options.update(width=10_000), table).maximum)
    console.print(table)
    for line in _totals(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(summary: ModelSummary) -> Table:
    title = f"{summary.model}: one image of {_times(summary.input_shape)}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    noted = any(layer.note for layer in summary.layers)
    numbers = ("values", "bytes", "weights", "biases", "multiply-adds")
    for heading in ("layer", "type", "output", *numbers, "then", *(["note"] if noted else [])):
        table.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=True)
    for layer in summary.layers:
        counts = _counts(layer.weights, layer.biases, layer.multiply_adds)
        stored = _stored(layer.activation_values, summary.value_bytes)
        row = (layer.name, layer.type, _times(layer.output_shape), *stored, *counts, ", ".join(layer.followed_by))
        table.add_row(*row, *([layer.note] if noted else []))
    table.add_section()
    totals = _counts(summary.total_weights, summary.total_biases, summary.total_multiply_adds)
    table.add_row("total", "", "", *_stored(summary.total_activation_values, summary.value_bytes), *totals)
    return table


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _stored(values: int, value_bytes: int) -> tuple[str, str]:
    return f"{values:,}", format_bytes(values * value_bytes)


def _counts(*counts: int) -> tuple[str, ...]:
    return tuple(f"{count:,}" if count else "" for count in counts)


def _totals(summary: ModelSummary) -> list[str]:
    memory = summary.memory
    frozen = summary.total_parameters - summary.trainable_parameters
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "momentum": memory.optimizer,
        "activations": memory.activations,
        "gradients in flight": memory.transient,
    }
    return [
        f"{summary.total_parameters:,} parameters, weights and biases together"
        + (f"; {frozen:,} of them are frozen" if frozen else ""),
        f"Values are {summary.value_bytes} bytes each; the layers under 'then' write over what is there.",
        f"Training in batches of {summary.batch_size} takes {format_bytes(memory.total)} at its peak ({OPTIMIZER}): "
        + ", ".join(f"{format_bytes(size)} {name}" for name, size in parts.items()),
    ]


def format_bytes(count: int) -> str:
    """A number of bytes to read: 512 B, 15.4 kB, 61.0 MB, 1.2 GB (powers of 1,000)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.95:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
