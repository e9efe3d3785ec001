"""launch: run a kernel by name on the device of its arguments, after checking them against its declaration."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.launch import jit, native, plan, simulator
from gpucnn.launch.sources import ELEMENTS, SCALARS, Entry, Parameter, entries, structs
from gpucnn.launch.tensor_map import TensorMap

GRID_LIMITS = (2**31 - 1, 65_535, 65_535)


@dataclass(frozen=True)
class Strided:
    """An array that a kernel reads by strides which it is given as integers; others must be contiguous."""

    array: Any


def launch(kernel: str, grid: int | tuple[int, ...], *arguments: Any, shared_bytes: int = 0) -> None:
    """Run `kernel` with `grid` blocks (along x, or x, y and z) on the device of its array arguments.

    Integers and floats are converted to the declared types; an array may be None where the kernel takes a null pointer;
    a struct's numbers come as a tuple, `Pointers` as a sequence of arrays, `TENSOR_MAP` as a TensorMap. A grid without
    blocks runs nothing.

    - shared_bytes: dynamic shared memory of a block
    Raises TypeError for an argument of another kind, dtype or layout, ValueError for a number out of range or a grid
    that is too large, SimulatorError for what the simulator finds, and RuntimeError for a launch that a GPU refuses.
    """
    if plan.is_refreshing():
        return
    entry = find(kernel)
    blocks = _grid(entry, grid)
    bound = bind(entry, arguments)
    where = _device(entry, [array for value in bound for array in devices.arrays_in(value)])
    if 0 in blocks:
        return
    if os.environ.get("GPUCNN_DEBUG"):
        print(f"gpucnn: {where}: {kernel}, grid {blocks}, {entry.threads} threads, {shared_bytes} shared bytes")
    run = engine(where)
    run(entry, blocks, bound, shared_bytes)
    recorded = plan.current()
    if recorded is not None:
        recorded.add(run, entry, blocks, bound, shared_bytes)


def architecture_of(array: Any) -> int:
    """The architecture that kernels on an array's device run on, 90 for sm_90; the simulator's is a setting."""
    if devices.of(array) == "sim":
        return int(simulator.settings().architecture.removeprefix("sm_"))
    return int(array.device.compute_capability)


ENGINES = {"jit": jit.run, "native": native.run}


def engine(device: str) -> plan.Engine:
    """What runs kernels on a device: the simulator, or on a GPU the engine that GPUCNN_ENGINE names (jit)."""
    if device == "sim":
        return simulator.run
    name = os.environ.get("GPUCNN_ENGINE") or "jit"
    if name not in ENGINES:
        raise ValueError(f"GPUCNN_ENGINE is {name!r}; it must be one of {', '.join(ENGINES)}")
    return ENGINES[name]


def shared_limit(array: Any) -> int:
    """Bytes of shared memory that one block may have on the array's device."""
    device = devices.of(array)
    if device == "sim":
        return simulator.SHARED_LIMITS[simulator.settings().architecture]
    return _shared_limit(int(device.partition(":")[2]))


@cache
def _shared_limit(index: int) -> int:
    return int(devices.cupy().cuda.Device(index).attributes["MaxSharedMemoryPerBlockOptin"])


def max_pointers() -> int:
    """How many arrays one argument `Pointers` can hold."""
    return structs()["Pointers"][0][1]


def grid_for(count: int, threads: int = 256) -> int:
    """Blocks of an element-wise kernel over `count` elements: a thread for each, at most 4096 blocks, which loop."""
    return min(-(-count // threads), 4096)


def find(kernel: str) -> Entry:
    """The declaration of a kernel; raises ValueError for an unknown name."""
    try:
        return entries()[kernel]
    except KeyError:
        raise ValueError(f"launch: there is no kernel {kernel!r} in kernels/*.cu") from None


def _grid(entry: Entry, grid: int | tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*((grid,) if isinstance(grid, (int, np.integer)) else grid), 1, 1)[:3]
    for axis, blocks, limit in zip("xyz", (x, y, z), GRID_LIMITS, strict=True):
        if not 0 <= blocks <= limit:
            raise ValueError(f"{entry.name}: grid.{axis} is {blocks}; it must be from 0 to {limit}; split the work")
    if x % entry.cluster:
        raise ValueError(f"{entry.name}: grid.x is {x}; it must be a multiple of the cluster of {entry.cluster} blocks")
    return int(x), int(y), int(z)


def bind(entry: Entry, arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments as the kernel's parameters: arrays (None for null), tuples of them, NumPy values, tensor maps."""
    names = ", ".join(parameter.name for parameter in entry.parameters)
    if len(arguments) != len(entry.parameters):
        raise TypeError(
            f"{entry.name}: it takes {len(entry.parameters)} arguments ({names}), but {len(arguments)} were given"
        )
    return [_bind_one(entry, *pair) for pair in zip(entry.parameters, arguments, strict=True)]


def _bind_one(entry: Entry, parameter: Parameter, value: Any) -> Any:
    if parameter.pointer:
        return _pointer(entry, parameter, value)
    if parameter.type in SCALARS:
        return scalar(f"{entry.name}: {parameter.name}", parameter.type, value)
    if parameter.type == "Pointers":
        return _pointers(entry, parameter, value)
    if parameter.type == "TENSOR_MAP":
        return _tensor_map(entry, parameter, value)
    return _struct(entry, parameter, value)


def _pointers(entry: Entry, parameter: Parameter, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > max_pointers() or any(array is None for array in value):
        raise TypeError(f"{entry.name}: {parameter.name} must be a tuple or list of at most {max_pointers()} arrays")
    return tuple(_pointer(entry, replace(parameter, type="float"), array) for array in value)


def _tensor_map(entry: Entry, parameter: Parameter, value: Any) -> TensorMap:
    if not isinstance(value, TensorMap) or not devices.runs_kernels(value.array):
        shown = f"a map of {type(value.array).__name__}" if isinstance(value, TensorMap) else type(value).__name__
        raise TypeError(
            f"{entry.name}: {parameter.name} is {shown}; it must be a TensorMap of an array on 'cuda' or 'sim'"
        )
    return value


def _pointer(entry: Entry, parameter: Parameter, value: Any) -> Any:
    array = value.array if isinstance(value, Strided) else value
    if array is None:
        return None
    where = f"{entry.name}: {parameter.name}"
    if not devices.is_array(array) or not devices.runs_kernels(array):
        raise TypeError(f"{where} is {type(array).__name__}; it must be an array on 'cuda' or 'sim': use .to(device)")
    if array.dtype.name != ELEMENTS.get(parameter.type, parameter.type):
        raise TypeError(f"{where} is {array.dtype}; the kernel takes {ELEMENTS.get(parameter.type, parameter.type)}")
    if array is value and not array.flags.c_contiguous:
        raise TypeError(f"{where} is not contiguous (strides {array.strides}); use device.contiguous")
    return array


def scalar(where: str, kind: str, value: Any) -> np.generic:
    """`value` as a NumPy scalar of a C type; raises TypeError or ValueError rather than change an integer."""
    dtype = np.dtype(SCALARS[kind])
    if dtype.kind == "f":
        return dtype.type(value)
    if not isinstance(value, (int, np.integer)):
        raise TypeError(f"{where} is {value!r}; it must be an integer")
    limits = np.iinfo(dtype)
    if not limits.min <= value <= limits.max:
        raise ValueError(f"{where} is {value}; it must fit {kind}, from {limits.min} to {limits.max}; split the work")
    return dtype.type(value)


def _struct(entry: Entry, parameter: Parameter, value: Any) -> np.void:
    fields = [kind for kind, count in structs()[parameter.type] for _ in range(count)]
    values = list(_flat(value))
    where = f"{entry.name}: {parameter.name}"
    if len(values) != len(fields):
        raise TypeError(f"{where} has {len(values)} values; {parameter.type} has {len(fields)}")
    layout = np.dtype([(f"field{i}", SCALARS[kind]) for i, kind in enumerate(fields)], align=True)
    return np.array([tuple(scalar(where, *pair) for pair in zip(fields, values, strict=True))], layout)[0]


def _flat(value: Any) -> Any:
    """The numbers of nested tuples, in order."""
    for part in value:
        yield from _flat(part) if isinstance(part, (tuple, list)) else (part,)


def _device(entry: Entry, arrays: list[Any]) -> str:
    found = {devices.of(array) for array in arrays}
    if len(found) != 1:
        raise ValueError(
            f"{entry.name}: its arrays are on {' and '.join(sorted(found)) or 'no device'}; move them to one"
        )
    return found.pop()
