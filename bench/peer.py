"""PyTorch beside gpucnn on the same device and the same memory: the reference for results and for speed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from gpucnn import device as devices
from gpucnn import models, nn
from gpucnn.bench import policies, reference_worker


@cache
def torch(device: str) -> Any:
    """The module, or None where it is not installed or has no GPU support that `device` needs."""
    if importlib.util.find_spec("torch") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it is imported
        import torch as module
    if device.startswith("cuda") and not module.cuda.is_available():
        return None
    module.backends.cudnn.benchmark = True  # its fastest algorithm for each shape
    return module


@contextmanager
def tf32(module: Any, allowed: bool) -> Iterator[None]:
    """Inside this context float32 convolutions and products may, or may not, use TF32."""
    switches = module.backends.cudnn, module.backends.cuda.matmul
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases have another name for the same switches
        before = [switch.allow_tf32 for switch in switches]
        for switch in switches:
            switch.allow_tf32 = allowed
        try:
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value


def settings(device: str) -> tuple[bool, ...]:
    """Which settings of TF32 are worth a row."""
    return (False, True) if device.startswith("cuda") else (False,)


def to_torch(array: Any) -> Any:
    """A torch tensor on the memory of an array."""
    device = devices.of(array)
    module = torch(device)
    if device.startswith("cuda"):
        return module.from_dlpack(array)
    return module.from_numpy(devices.to_numpy(array))


def from_torch(value: Any, like: Any) -> Any:
    """An array on the memory of a torch tensor, on the device of `like`."""
    if devices.of(like).startswith("cuda"):
        return devices.cupy().from_dlpack(value.detach())
    return devices.move(value.detach().numpy(), devices.of(like))


def random(shape: tuple[int, ...], seed: int, device: str, dtype: str = "float32") -> Any:
    """Normal numbers on a device, those that reference_worker makes; large arrays repeat a block."""
    made = reference_worker.block(seed, dtype).astype(policies.dtype_of(dtype), copy=False)
    block = devices.move(made, device)
    array = devices.empty(shape, block.dtype, block)
    flat = array.reshape(-1)
    for start in range(0, flat.size, block.size):
        flat[start : start + block.size] = block[: flat.size - start]
    return array


def channels_last(array: Any) -> Any:
    """The same values, laid out so that the channels of a pixel are neighbours."""
    return devices.contiguous(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def free_memory(device: str) -> None:
    """Give memory that both libraries keep back to the GPU."""
    if device.startswith("cuda"):
        devices.cupy().get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


def twin(model: models.Network, device: str) -> Any:
    """The same layers with the same weights in PyTorch."""
    module = torch(device)
    layers: list[nn.Module] = []
    for _, part in model.named_children():
        layers.extend(part if isinstance(part, nn.Sequential) else [part])
    if not any(isinstance(layer, nn.Flatten) for layer in layers):
        layers.insert(next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)), nn.Flatten())
    found = module.nn.Sequential(*(_layer(module, layer) for layer in layers))
    with module.no_grad():
        for ours, theirs in zip(model.parameters(), found.parameters(), strict=True):
            theirs.copy_(module.from_numpy(devices.to_numpy(ours.data)))
    return found.to("cuda") if device.startswith("cuda") else found


def _layer(module: Any, layer: nn.Module) -> Any:
    """The PyTorch module of one layer."""
    makers: dict[type, Callable[[Any], Any]] = {
        nn.Conv2d: lambda a: module.nn.Conv2d(
            a.in_channels, a.out_channels, a.kernel_size, a.stride, a.padding, a.dilation, a.groups
        ),
        nn.Linear: lambda a: module.nn.Linear(a.in_features, a.out_features),
        nn.MaxPool2d: lambda a: module.nn.MaxPool2d(a.kernel_size, a.stride, a.padding),
        nn.AdaptiveAvgPool2d: lambda a: module.nn.AdaptiveAvgPool2d(a.output_size),
        nn.Dropout: lambda a: module.nn.Dropout(a.p),
        nn.ReLU: lambda a: module.nn.ReLU(),
        nn.Flatten: lambda a: module.nn.Flatten(),
    }
    if type(layer) not in makers:
        raise ValueError(f"bench: no PyTorch twin of {type(layer).__name__}")
    return makers[type(layer)](layer)
