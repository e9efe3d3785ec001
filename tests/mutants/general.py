"""What any kernel may get wrong: memory, barriers, warps, asynchronous copies, blocks."""

from tests.mutants.mutant import Mutant

GENERAL = (
    Mutant(
        "read_past_the_end",  # of numbers that are not used
        "dropout.cu",
        "values[k] = first + k < count ? to_float(x[first + k]) : 0.0f;",
        "values[k] = to_float(x[first + k]);",
        "test_dropout_kernels.py -k test_sound",
    ),
    Mutant(
        "write_past_the_end",
        "im2col.cu",
        "i < patches.count; i += global_threads()) {\n        int pixel, w;",
        "i <= patches.count; i += global_threads()) {\n        int pixel, w;",
        "test_conv_kernels_use.py -k test_kernels_are_sound and im2col",
    ),
    Mutant(
        "shared_index_past_its_array",
        "max_unpool2d.cu",
        "later < UNPOOL_THREADS; ++later",
        "later <= UNPOOL_THREADS; ++later",
        "test_pool_kernels.py -k test_unpooling_is_sound",
    ),
    Mutant(
        "no_barrier_before_read",
        "reduce.cu",
        "partial[warp][lane] = sum;\n    __syncthreads();",
        "partial[warp][lane] = sum;",
        "test_reduce_kernels.py -k test_the_same_bits_and_no_fault",
    ),
    Mutant(
        "no_barrier_after_read",
        "conv2d_direct.cuh",
        "        multiply(t, g, group, tile, begin, end);\n        __syncthreads();",
        "        multiply(t, g, group, tile, begin, end);",
        "test_conv_direct_kernels.py -k test_sound and many_terms",
    ),
    Mutant(
        "no_barrier_between_stages",
        "conv2d_direct_backward_weight.cuh",
        "stages + stage * T::STAGE, row, column, way);\n        __syncthreads();",
        "stages + stage * T::STAGE, row, column, way);",
        "test_conv_direct_kernels.py -k test_sound and general",
    ),
    Mutant(
        "no_barrier_before_next_channels",
        "conv2d_direct_first_layer.cu",
        "        if (first > 0) __syncthreads();\n",
        "",
        "test_conv_direct_kernels.py -k test_sound and first_layer_staged",
    ),
    Mutant(
        "barrier_of_some_threads",
        "batch_norm.cuh",
        "            states[threadIdx.x] = state;\n        }\n        __syncthreads();",
        "            states[threadIdx.x] = state;\n            __syncthreads();\n        }",
        "test_normalization_kernels.py -k test_running_statistics_by_hand",
    ),
    Mutant(
        "barrier_in_both_branches",
        "reduce.cu",
        "    partial[warp][lane] = sum;\n    __syncthreads();\n    if (warp > 0 || column >= inner) return;",
        "    partial[warp][lane] = sum;\n    if (warp > 0 || column >= inner) {\n        __syncthreads();\n"
        "        return;\n"
        "    }\n    __syncthreads();",
        "test_reduce_kernels.py -k test_columns_exactly",
    ),
    Mutant(
        "return_before_barrier",
        "conv2d_depthwise.cuh",
        "    __syncthreads();\n    if (threadIdx.x >= TAPS * TAPS) return;",
        "    if (threadIdx.x >= TAPS * TAPS) return;\n    __syncthreads();",
        "test_conv_direct_kernels.py -k test_exact_on_integers and depthwise3",
    ),
    Mutant(
        "return_before_shuffle",
        "softmax.cu",
        "if (row >= rows) return;  // the whole group",
        "if (row >= rows || group_thread<GROUP>() >= length) return;",
        "test_loss_kernels.py -k test_softmax_along_any_axis",
    ),
    Mutant(
        "shuffle_in_an_uneven_loop",
        "avg_pool2d.cu",
        "        sum += to_float(plane[at.h * pool.x_stride[2] + at.w * pool.x_stride[3]]);\n"
        "    sum = warp_reduce<Sum>(sum);",
        "        sum += warp_reduce<Sum>(to_float(plane[at.h * pool.x_stride[2] + at.w * pool.x_stride[3]]));",
        "test_pool_kernels.py -k test_adaptive_average",
    ),
    Mutant(
        "misaligned_vectors",
        "conv2d_depthwise.cuh",
        "if (c.W % COLUMNS == 0 && is_aligned16(x))",
        "if (is_aligned16(x))",
        "test_conv_direct_kernels.py -k test_sound and depthwise_stride2",
    ),
    Mutant(
        "misaligned_views",
        "update.cu",
        "bool aligned = is_aligned16(arrays.p) && is_aligned16(arrays.g);",
        "bool aligned = is_aligned16(arrays.g);",
        "test_update_kernels.py -k test_memory_that_is_not_aligned",
    ),
    Mutant(
        "blocks_share_an_output",
        "conv2d_backward_bias.cu",
        "gb[blockIdx.y * static_cast<int64>(gridDim.x) + blockIdx.x] = sum;",
        "gb[blockIdx.x] = sum;",
        "test_conv_kernels.py -k test_long_sums_of_the_weight_gradient and implicit",
    ),
    Mutant(
        "blocks_add_without_order",
        "conv2d_depthwise.cuh",
        "partial[(static_cast<int64>(split) * c.K + filter) * (TAPS * TAPS) + threadIdx.x] = total;",
        "partial[static_cast<int64>(filter) * (TAPS * TAPS) + threadIdx.x] += total;",
        "test_conv_direct_kernels.py -k test_exact_on_integers and depthwise_many_items",
    ),
    Mutant(
        "no_wait_for_copies",
        "tile.cuh",
        "        copy_async_wait<0>();\n",
        "",
        "test_gemm_kernels.py -k test_tails_are_exact and 64x64",
    ),
    Mutant(
        "wait_for_too_few_copies",
        "conv2d_direct_backward_weight.cuh",
        "copy_async_wait<1>();",
        "copy_async_wait<2>();",
        "test_conv_direct_kernels.py -k test_exact_on_integers and lenet",
    ),
    Mutant(
        "wrong_stage",
        "gemm.cuh",
        "        right(distance);",
        "        right(0);",
        "test_gemm_kernels.py -k test_tails_are_exact and 32x32",
    ),
)
