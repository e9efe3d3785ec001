"""Types of the compiled extension (csrc/).

Arrays are C-contiguous unless said, and all of a call have one dtype unless said. Every function overwrites
completely the outputs its caller allocated, and raises ValueError where shapes disagree, TypeError where a
dtype or layout does.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", np.float32, np.float64)

openmp: bool
compiler: str
instruction_set: str

def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...

# ceiling.cpp: multiply-adds on registers alone, on all threads, whose number times two it returns; a copy
def multiply_add_loop(rounds: int, item_size: int) -> float: ...
def copy_bytes(from_: NDArray[np.uint8], to: NDArray[np.uint8]) -> None: ...

# gemm.cpp: a (B, M, K) and b (B, K, N) with any strides, c (B, M, N), bias (N,)
def gemm(a: NDArray[Float], b: NDArray[Float], c: NDArray[Float], bias: NDArray[Float] | None = None) -> None: ...

# conv2d.cpp: x (N, C, H, W), w (K, C / groups, R, S), y (N, K, P, Q); shape is a flattened ConvShape:
# N C H W K R S P Q stride_h stride_w padding_h padding_w dilation_h dilation_w groups
def conv2d_forward_im2col(
    x: NDArray[Float], w: NDArray[Float], bias: NDArray[Float] | None, y: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_forward_direct(
    x: NDArray[Float], w: NDArray[Float], bias: NDArray[Float] | None, y: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_input_im2col(
    gy: NDArray[Float], w: NDArray[Float], gx: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_input_direct(
    gy: NDArray[Float], w: NDArray[Float], gx: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_weight_im2col(
    x: NDArray[Float], gy: NDArray[Float], gw: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_weight_direct(
    x: NDArray[Float], gy: NDArray[Float], gw: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_forward_fft(
    x: NDArray[Float], w: NDArray[Float], bias: NDArray[Float] | None, y: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_input_fft(
    gy: NDArray[Float], w: NDArray[Float], gx: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_weight_fft(
    x: NDArray[Float], gy: NDArray[Float], gw: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_fft_workspace_bytes(shape: Sequence[int], item_size: int) -> int: ...
def conv2d_forward_winograd(
    x: NDArray[Float], w: NDArray[Float], bias: NDArray[Float] | None, y: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_input_winograd(
    gy: NDArray[Float], w: NDArray[Float], gx: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_weight_winograd(
    x: NDArray[Float], gy: NDArray[Float], gw: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_winograd_workspace_bytes(shape: Sequence[int], item_size: int) -> int: ...
def conv2d_forward_winograd4(
    x: NDArray[Float], w: NDArray[Float], bias: NDArray[Float] | None, y: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_input_winograd4(
    gy: NDArray[Float], w: NDArray[Float], gx: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_backward_weight_winograd4(
    x: NDArray[Float], gy: NDArray[Float], gw: NDArray[Float], shape: Sequence[int]
) -> None: ...
def conv2d_winograd4_workspace_bytes(shape: Sequence[int], item_size: int) -> int: ...
def conv2d_backward_bias(gy: NDArray[Float], gb: NDArray[Float]) -> None: ...
def conv2d_im2col_workspace_bytes(shape: Sequence[int], item_size: int) -> int: ...

# toeplitz.cpp: values and columns (entries,), starts (rows + 1,), dense (inner, width), out (rows, width)
def csr_matmul(
    values: NDArray[Float],
    columns: NDArray[np.int64],
    starts: NDArray[np.int64],
    dense: NDArray[Float],
    out: NDArray[Float],
) -> None: ...

# max_pool2d.cpp, avg_pool2d.cpp: x (N, C, H, W), y (N, C, P, Q); window:
# kernel_h kernel_w stride_h stride_w padding_h padding_w dilation_h dilation_w
def max_pool2d_forward(
    x: NDArray[Float], y: NDArray[Float], indices: NDArray[np.int64], window: Sequence[int]
) -> None: ...
def max_pool2d_backward(gy: NDArray[Float], indices: NDArray[np.int64], gx: NDArray[Float]) -> None: ...
def avg_pool2d_forward(
    x: NDArray[Float], y: NDArray[Float], window: Sequence[int], count_include_pad: bool
) -> None: ...
def avg_pool2d_backward(
    gy: NDArray[Float], gx: NDArray[Float], window: Sequence[int], count_include_pad: bool
) -> None: ...
def adaptive_avg_pool2d_forward(x: NDArray[Float], y: NDArray[Float]) -> None: ...
def adaptive_avg_pool2d_backward(gy: NDArray[Float], gx: NDArray[Float]) -> None: ...

# local_response_norm.cpp: x, y, scale, gy, gx (N, C, L)
def local_response_norm_forward(
    x: NDArray[Float],
    y: NDArray[Float],
    scale: NDArray[Float],
    size: int,
    alpha: float,
    beta: float,
    k: float,
) -> None: ...
def local_response_norm_backward(
    x: NDArray[Float],
    scale: NDArray[Float],
    gy: NDArray[Float],
    gx: NDArray[Float],
    size: int,
    alpha: float,
    beta: float,
) -> None: ...

# batch_norm.cpp: x, y, gy, gx (N, C, L), the rest (C,)
def batch_norm_statistics(x: NDArray[Float], mean: NDArray[Float], variance: NDArray[Float]) -> None: ...
def batch_norm_apply(
    x: NDArray[Float],
    mean: NDArray[Float],
    inverse_std: NDArray[Float],
    weight: NDArray[Float] | None,
    bias: NDArray[Float] | None,
    y: NDArray[Float],
) -> None: ...
def batch_norm_backward_training(
    x: NDArray[Float],
    gy: NDArray[Float],
    mean: NDArray[Float],
    inverse_std: NDArray[Float],
    weight: NDArray[Float] | None,
    gx: NDArray[Float],
    gweight: NDArray[Float] | None,
    gbias: NDArray[Float] | None,
) -> None: ...
def batch_norm_backward_inference(
    x: NDArray[Float],
    gy: NDArray[Float],
    mean: NDArray[Float],
    inverse_std: NDArray[Float],
    weight: NDArray[Float] | None,
    gx: NDArray[Float],
    gweight: NDArray[Float] | None,
    gbias: NDArray[Float] | None,
) -> None: ...

# elementwise.cpp
def relu_forward(x: NDArray[Float], y: NDArray[Float]) -> None: ...
def relu_backward(y: NDArray[Float], gy: NDArray[Float], gx: NDArray[Float]) -> None: ...

# random.cpp: seed and offset from 0 to 2**64 - 1, threshold from 0 to 2**32 - 1
def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def philox_uint32(out: NDArray[np.uint32], seed: int, offset: int) -> None: ...
def dropout(x: NDArray[Float], y: NDArray[Float], seed: int, offset: int, threshold: int, scale: float) -> None: ...

# update.cpp: p, momentum_buffer, m and v are changed in place
def sgd_update(
    p: NDArray[Float],
    g: NDArray[Float],
    momentum_buffer: NDArray[Float] | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    first: bool,
) -> None: ...
def adam_update(
    p: NDArray[Float],
    g: NDArray[Float],
    m: NDArray[Float],
    v: NDArray[Float],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None: ...

# batch.cpp: images (N, C, H, W), indices and flips (B,), out (B, C, h, w), offsets (B, 2), scale and shift (C,)
def gather_batch(
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    out: NDArray[np.float32],
    offsets: NDArray[np.int64],
    flips: NDArray[np.uint8],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    fill: int,
) -> None: ...

# native.cpp: the CUDA driver, opened at run time; streams are integers, as CuPy's stream.ptr
class NativeDriver:
    def __init__(self, library: str) -> None: ...
    def require_context(self, device: int) -> None: ...

class NativeModule:
    def __init__(self, driver: NativeDriver, cubin: bytes) -> None: ...

class NativeLaunch:
    def __init__(
        self,
        module: NativeModule,
        name: str,
        grid: Sequence[int],
        threads: int,
        shared_bytes: int,
        arguments: Sequence[bytes],
    ) -> None: ...
    def run(self, stream: int) -> None: ...

class NativeGraph:
    def __init__(self, driver: NativeDriver, launches: Sequence[NativeLaunch]) -> None: ...
    def run(self, stream: int) -> None: ...
