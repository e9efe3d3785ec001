"""Matrix products that take 16-bit arrays, too: they are computed in float32 and rounded once.

The gradient of a weight stays float32, as the sums are.
"""

from gpucnn.ops import gemm
from gpucnn.ops.cast import in_float32

matmul = in_float32()(gemm.matmul)
linear_forward = in_float32()(gemm.linear_forward)
linear_backward_weight = in_float32(rounds=False)(gemm.linear_backward_weight)
