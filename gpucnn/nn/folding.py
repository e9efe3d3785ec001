"""Networks for inference: batch normalisation folded into the convolutions before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn import dtypes
from gpucnn.functional import conv2d_relu
from gpucnn.nn.activation import ReLU
from gpucnn.nn.conv import Conv2d
from gpucnn.nn.module import Module, Parameter, Sequential
from gpucnn.nn.normalization import BatchNorm2d


class Conv2dRelu(Conv2d):
    """max(Conv2d(x), 0) in one pass over y: x (N,C,H,W) → (N,K,P,Q); arguments and errors are Conv2d's."""

    def forward(self, x: Any) -> Any:
        return conv2d_relu(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            algorithm=self.algorithm, workspace_limit=self.workspace_limit,
        )  # fmt: skip


def folded(model: Module) -> Module:
    """A network in evaluation mode that computes what `model` does there, with fewer passes over memory.

    In each Sequential a Conv2d with a BatchNorm2d behind it becomes one convolution, of the weights w·s and the bias
    (b − mean)·s + shift with s = scale / √(variance + eps), computed in float64 and rounded once; a ReLU behind that is
    applied in the same pass. So y differs by rounding alone. The layers that are left keep their names.

    Folded weights are of now: call it again when the model was trained further. All other parameters and buffers are
    the model's own. Forward hooks stay behind.

    - model: any Module, on any device, of any dtype; it is not changed
    Source: Jacob et al. 2018, section 3.2 (there for quantised networks).
    """
    return _copied(model, {}).eval()


def _copied(module: Module, copies: dict[int, Module]) -> Module:
    """A copy of a module and those inside it, each once; parameters and buffers are not copied."""
    if id(module) in copies:
        return copies[id(module)]
    copy = copies[id(module)] = _alike(type(module), module)
    for name, child in module.named_children():
        setattr(copy, name, _copied(child, copies))
    if isinstance(module, Sequential):
        _fold(copy, module)
    return copy


def _alike(kind: type[Module], module: Module) -> Module:
    """A module of this kind with the attributes of another, except its hooks."""
    made = kind.__new__(kind)
    own = {name: list(value) if isinstance(value, list) else value for name, value in vars(module).items()}
    own.pop("_forward_hooks", None)
    vars(made).update(own)
    return made


def _fold(copy: Module, module: Sequential) -> None:
    """Replace the convolutions in a copy of a Sequential, and take out what they compute now."""
    layers = list(module.named_children())
    for place, (name, layer) in enumerate(layers):
        if type(layer) is not Conv2d:
            continue
        behind = layers[place + 1 : place + 3]
        norm = behind[0][1] if behind else None
        if type(norm) is BatchNorm2d and norm.num_features == layer.out_channels:
            taken = behind[:2] if len(behind) > 1 and type(behind[1][1]) is ReLU else behind[:1]
        else:
            norm, taken = None, behind[:1] if type(norm) is ReLU else []
        if not taken:
            continue
        made = _alike(Conv2dRelu if type(taken[-1][1]) is ReLU else Conv2d, layer)
        if norm is not None:
            weight, bias = _folded_parameters(layer, norm)
            vars(made).update(weight=weight, bias=bias)
        setattr(copy, name, made)
        for gone, _ in taken:
            delattr(copy, gone)


def _folded_parameters(conv: Conv2d, norm: BatchNorm2d) -> tuple[Parameter, Parameter]:
    """(weight, bias); the bias of 16-bit layers is float32, as sums are."""
    scale, shift, mean, variance = (
        devices.to_numpy(array).astype(np.float64)
        for array in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var)
    )
    factor = scale / np.sqrt(variance + norm.eps)
    weight = devices.to_numpy(conv.weight.data).astype(np.float64) * factor[:, None, None, None]
    bias = 0.0 if conv.bias is None else devices.to_numpy(conv.bias.data).astype(np.float64)
    kind, where = conv.weight.dtype, devices.of(conv.weight.data)
    arrays = weight.astype(kind), ((bias - mean) * factor + shift).astype(dtypes.wide(kind))
    made_weight, made_bias = (Parameter(devices.move(array, where)) for array in arrays)
    return made_weight, made_bias
