"""Faults planted in the kernels, one at a time: each must make the tests fail, or the tests are not worth much.

    python -m tests.mutants [NAME …]

Every mutant is a copy of kernels/ with one text replaced, on which a few tests run until their first failure. The same
tests must pass on the kernels as they are, and a mutant must compile, or it does not count. The last line has the
number of caught ones.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpucnn.launch import sources

ROOT = Path(__file__).parents[1]
SECONDS = 300  # for the tests of one mutant


@dataclass(frozen=True)
class Mutant:
    """In `file`, the text `old`, which stands there once, becomes `new`; `test` must then fail.

    - test: a file in tests/, or tests of it: "test_relu.py", "test_relu.py -k sound"
    """

    name: str
    file: str
    old: str
    new: str
    test: str


# What any kernel may get wrong: memory, barriers, warps, asynchronous copies, blocks.
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

# What one kernel may get wrong: its formula, its borders, its accuracy.
OF_KERNELS = (
    Mutant(
        "gemm_bias_left_out_in_tails",
        "gemm.cuh",
        "before + row_bias + column_bias[j], relu);",
        "before + row_bias, relu);",
        "test_gemm_kernels.py -k test_tails_are_exact and 32x32",
    ),
    Mutant(
        "gemm_relu_of_every_chunk",
        "gemm.cuh",
        "done > 0, last && shape.relu);",
        "done > 0, shape.relu);",
        "test_gemm_kernels.py -k test_chunks_are_exact and 32x32",
    ),
    Mutant(
        "wgmma_descriptor_with_another_stride",
        "ptx_wgmma.cuh",
        "static_cast<uint64_t>(stride_bytes >> 4) << 32",
        "static_cast<uint64_t>(stride_bytes >> 5) << 32",
        "test_wgmma.py -k test_layouts_are_exact_on_integers and bf16_64_kk",
    ),
    Mutant(
        "wgmma_descriptor_with_another_swizzle",
        "ptx_wgmma.cuh",
        "SWIZZLE_BYTES == 64 ? 2 : SWIZZLE_BYTES == 32 ? 3",
        "SWIZZLE_BYTES == 64 ? 3 : SWIZZLE_BYTES == 32 ? 2",
        "test_wgmma.py -k test_layouts_are_exact_on_integers and bf16_64_mk",
    ),
    Mutant(
        "wgmma_accumulator_read_before_its_wait",
        "ptx_wgmma.cuh",
        "simulator::warpgroup_wait(GROUPS,",
        "simulator::warpgroup_wait(GROUPS + 1,",
        "test_wgmma.py -k test_sizes_are_exact_on_integers and 16",
    ),
    Mutant(
        "tensor_groups_of_rows_not_swapped",
        "tile_tensor.cuh",
        "(row ^ 4)",
        "row",
        "test_gemm_tensor_kernels.py -k test_small_empty_and_many_terms and tf32",
    ),
    Mutant(
        "tensor_correction_left_out",
        "tile_tensor.cuh",
        "mma_tf32(products.values[m][n], low, b_high[n]);\n",
        "\n",
        "test_gemm_tensor_kernels.py -k test_errors and 576",
    ),
    Mutant(
        "tensor_step_begins_with_all_sums",
        "tile_tensor.cuh",
        "typename Tile::Sums products = {};",
        "typename Tile::Sums& products = sums;",
        "test_gemm_tensor_kernels.py -k test_error_of_positive_terms",
    ),
    Mutant(
        "tensor_tf32_cut_off",
        "tile_tensor.cuh",
        "a[i] = round_tf32(left.load(k, i / 2, m * 16 + i % 2 * 8));",
        "a[i] = __float_as_uint(left.load(k, i / 2, m * 16 + i % 2 * 8));",
        "test_gemm_tensor_kernels.py -k test_tf32_is_rounded",
    ),
    Mutant(
        "tensor_tile_in_another_order_than_it_is_read",
        "tile.cuh",
        "return Tile::RIGHT + term * Tile::PITCH_N + (column ^ (term & Tile::SWAP));",
        "return Tile::RIGHT + term * Tile::PITCH_N + column;",
        "test_conv_tensor_kernels.py -k test_exact and vgg and tf32",
    ),
    Mutant(
        "half_tail_pixels_unmasked",
        "conv2d_half_backward_weight.cuh",
        "const bool pixel = at.left > 0;",
        "const bool pixel = true;",
        "test_conv_half_kernels.py -k test_exact and many_terms and backward_weight and last-last",
    ),
    Mutant(
        "half_padding_off_by_one",
        "conv2d_half_gather.cuh",
        "outside_bits(g.rows, u, g.height)",
        "outside_bits(g.rows, u, g.height + 1)",
        "test_conv_half_kernels.py -k test_exact and channels_16 and forward and last-last",
    ),
    Mutant(
        "half_phases_mixed_up",
        "conv2d_half_gather.cuh",
        "const int h = u * g.step_h + g.phase_h,",
        "const int h = u * g.step_h + g.phase_w,",
        "test_conv_half_kernels.py -k test_exact and phases and backward_input",
    ),
    Mutant(
        "half_rows_not_swizzled",
        "conv2d_half.cuh",
        "(chunk ^ (row >> 1 & 3))",
        "(chunk ^ (row >> 2 & 3))",
        "test_conv_half_kernels.py -k test_no_bank_conflicts and forward",
    ),
    Mutant(
        "half_stage_written_while_it_is_read",
        "conv2d_half.cuh",
        "int reading = 0, writing = AHEAD * Tile::STAGE;",
        "int reading = 0, writing = 0;",
        "test_conv_half_kernels.py -k test_exact and many_terms and forward and last-last",
    ),
    Mutant(
        "half_tail_terms_unmasked",
        "gemm_half.cuh",
        "source + i * step, left > 0 && i < copies);",
        "source + i * step, left > -8 && i < copies);",
        "test_gemm_half_kernels.py -k test_tails_are_exact and nt and half-bfloat16 and 64x64",
    ),
    Mutant(
        "half_tail_row_unmasked",
        "gemm_half.cuh",
        "if (row >= shape.M || count <= 0) continue;",
        "if (row > shape.M || count <= 0) continue;",
        "test_gemm_half_kernels.py -k test_tails_are_exact and nn and half-bfloat16 and 64x64",
    ),
    Mutant(
        "half_swizzle_of_writes_only",
        "conv2d_half.cuh",
        "LEFT_TERMS ? term_place<Tile::TILE_M>(lane % 8 + lane / 16 * 8, row / UNIT + lane / 8 % 2)",
        "LEFT_TERMS ? (lane % 8 + lane / 16 * 8) * Tile::TILE_M + (row / UNIT + lane / 8 % 2) * UNIT",
        "test_gemm_half_kernels.py -k test_tails_are_exact and tn and half-bfloat16 and 64x64",
    ),
    Mutant(
        "half_waits_for_a_stage_too_few",
        "conv2d_half.cuh",
        "copy_async_wait<AHEAD - 1>();",
        "copy_async_wait<AHEAD>();",
        "test_gemm_half_kernels.py -k test_sound and 168 and nt",
    ),
    Mutant(
        "half_chunks_not_added",
        "gemm_half.cuh",
        "result, shape, done > 0, done + chunk >= steps);",
        "result, shape, false, done + chunk >= steps);",
        "test_gemm_half_kernels.py -k test_small_empty_and_many_terms and bfloat16",
    ),
    Mutant(
        "half_residual_left_out_with_relu",
        "gemm_half.cuh",
        "if (last && result.residual)",
        "if (last && result.residual && !shape.relu)",
        "test_gemm_half_kernels.py -k test_tails_are_exact and nn and half-bfloat16 and 64x64",
    ),
    Mutant(
        "gemm_split_left_out",
        "gemm.cu",
        "for (int split = 0; split < shape.splits; ++split) sum +=",
        "for (int split = 0; split + 1 < shape.splits; ++split) sum +=",
        "test_gemm_kernels.py -k test_splits_are_exact and 32x32",
    ),
    Mutant(
        "gemm_one_chain_of_sums",
        "tile.cuh",
        "constexpr int CHUNK = 1024;",
        "constexpr int CHUNK = 1 << 20;",
        "test_gemm_kernels.py -k test_sums_of_100_000_terms",
    ),
    Mutant(
        "gemm_terms_past_the_last",
        "tile.cuh",
        "pass < passes && term + k < terms);",
        "pass < passes && term + k <= terms);",
        "test_gemm_kernels.py -k test_tails_are_exact and 32x32 and nt",
    ),
    Mutant(
        "forward_padding_of_wrong_sign",
        "conv2d_axis.cuh",
        "return {stride, -padding, dilation, 0, 1, taps};",
        "return {stride, padding, dilation, 0, 1, taps};",
        "test_conv_kernels.py -k test_relu_in_the_same_pass and implicit_gemm",
    ),
    Mutant(
        "forward_bias_of_group_0",
        "conv2d_gather.cuh",
        "last && bias ? bias + group * g.filters : nullptr",
        "last && bias ? bias : nullptr",
        "test_conv_kernels.py -k test_relu_in_the_same_pass and implicit_gemm",
    ),
    Mutant(
        "forward_next_channel_not_counted",
        "conv2d_taps.cuh",
        "const int channels = next ? 0 : static_cast<int>(Tile::TERMS * strides.channel);",
        "const int channels = 0;",
        "test_conv_kernels.py -k test_relu_in_the_same_pass and implicit_gemm",
    ),
    Mutant(
        "forward_next_left_over_channel_not_counted",
        "conv2d_gather.cuh",
        "        source += channel * source_channel;\n",
        "",
        "test_conv_kernels.py -k test_relu_in_the_same_pass and implicit_gemm",
    ),
    Mutant(
        "weights_packed_without_their_tap",
        "conv2d_pack_weights.cu",
        "(channel / CHANNELS * s.taps + tap) * CHANNELS",
        "(channel / CHANNELS * s.taps) * CHANNELS + tap",
        "test_conv_kernels.py -k test_relu_in_the_same_pass and implicit_gemm",
    ),
    Mutant(
        "backward_input_wrong_phase",
        "conv2d_taps.cuh",
        "const int phase_h = phase / s.stride_w, phase_w = phase % s.stride_w;",
        "const int phase_h = phase / s.stride_h, phase_w = phase % s.stride_h;",
        "test_conv_kernels.py -k test_exact_on_integers and implicit_gemm and tall",
    ),
    Mutant(
        "backward_weight_wrong_carry",
        "conv2d_backward_weight.cuh",
        "const bool next_image = p >= shape.P;",
        "const bool next_image = p > shape.P;",
        "test_conv_kernels.py -k test_exact_on_integers and implicit_gemm and vgg",
    ),
    Mutant(
        "backward_weight_tap_of_another_row",
        "conv2d_backward_weight.cuh",
        "const int down = tap / s.S * s.dilation_h, right = tap % s.S * s.dilation_w;",
        "const int down = tap / s.R * s.dilation_h, right = tap % s.R * s.dilation_w;",
        "test_conv_kernels.py -k test_exact_on_integers and implicit_gemm and two_taps",
    ),
    Mutant(
        "backward_weight_one_chain_of_sums",
        "tile.cuh",
        "constexpr int CHUNK = 1024;",
        "constexpr int CHUNK = 1 << 20;",
        "test_conv_kernels.py -k test_long_sums_of_the_weight_gradient and one_split-implicit_gemm",
    ),
    Mutant(
        "backward_weight_reads_past_the_last_filter",
        "conv2d_backward_weight.cuh",
        "from, pass < filters);",
        "from, exists);",
        "test_conv_kernels_use.py -k test_kernels_are_sound and implicit_gemm",
    ),
    Mutant(
        "winograd4_column_past_the_right_border",
        "winograd4.cu",
        "static_cast<unsigned>(first_column + j) < grid.width;",
        "static_cast<unsigned>(first_column + j) <= grid.width;",
        "test_conv_winograd4_kernels.py -k test_tiles_of_images_are_exact and same",
    ),
    Mutant(
        "winograd4_tiles_past_the_last",
        "winograd4.cu",
        "< grid.height && at.tile < grid.count;",
        "< grid.height;",
        "test_conv_winograd4_kernels.py -k test_tiles_of_images_are_exact and wide",
    ),
    Mutant(
        "winograd4_filters_not_turned",
        "winograd4.cu",
        "taps[turned ? 8 - tap : tap]",
        "taps[tap]",
        "test_conv_winograd4_kernels.py -k test_filters and turned",
    ),
    Mutant(
        "winograd4_last_output_without_infinity",
        "winograd4.cuh",
        "y[3] = plus(B * Q, odd_b, plus(A * P, odd_a, m[5]));",
        "y[3] = plus(B * Q, odd_b, times(A * P, odd_a));",
        "test_conv_winograd4_kernels.py -k test_outputs_are_exact",
    ),
    Mutant(
        "gemm_flush_one_chain_of_sums",
        "gemm_flush.cu",
        "constexpr int FLUSH = 64;",
        "constexpr int FLUSH = 1 << 20;",
        "test_conv_winograd4_kernels.py -k test_sums_have_two_levels and 64x64",
    ),
    Mutant(
        "gemm_flush_forgets_the_sums_before",
        "gemm_flush.cu",
        "flush<Tile::THREADS>(sums, flushed, true);",
        "flush<Tile::THREADS>(sums, flushed, false);",
        "test_conv_winograd4_kernels.py -k test_products_are_exact and 64x64",
    ),
    Mutant(
        "gemm_flush_tensor_overwrites_what_it_should_add_to",
        "gemm_flush_tensor.cu",
        "thread_column<Tile>(), add,",
        "thread_column<Tile>(), false,",
        "test_conv_winograd4_tensor_kernels.py -k test_products_are_exact",
    ),
    Mutant(
        "gemm_flush_tensor_takes_the_plane_of_another_split",
        "gemm_flush_tensor.cu",
        "c + to.batch * shape.c_batch + to.split * shape.c_split",
        "c + to.batch * shape.c_batch",
        "test_conv_winograd4_tensor_kernels.py -k test_products_are_exact and 3",
    ),
    Mutant(
        "gemm_flush_forgets_the_last_sums",
        "gemm_flush.cu",
        "shape.K - to.split * shape.split_terms) > FLUSH)",
        "shape.K - to.split * shape.split_terms) > 2 * FLUSH)",
        "test_conv_winograd4_kernels.py -k test_products_are_exact and 64x64",
    ),
    Mutant(
        "fft_no_barrier_between_columns_and_rows",
        "fft_tiles.cu",
        "    __syncthreads();\n    const int item = threadIdx.x % Tile::ITEMS, row = threadIdx.x / Tile::ITEMS;\n"
        "    float2 z[T], parts[2] = {};",
        "    const int item = threadIdx.x % Tile::ITEMS, row = threadIdx.x / Tile::ITEMS;\n"
        "    float2 z[T], parts[2] = {};",
        "test_conv_fft_kernels.py -k test_kernels_are_sound",
    ),
    Mutant(
        "fft_rows_before_the_image",
        "fft_tiles.cu",
        "i >= first && i < end ? *source : 0.0f;",
        "i < end ? *source : 0.0f;",
        "test_conv_fft_kernels.py -k test_errors_are_bounded and vgg and 16",
    ),
    Mutant(
        "fft_gradients_past_the_tile",
        "fft_tiles.cu",
        "column < t.extent_w;",
        "column < T;",
        "test_conv_fft_kernels.py -k test_errors_are_bounded and tiles and 16",
    ),
    Mutant(
        "fft_split_left_out",
        "fft_tiles.cu",
        "for (int split = 1; split < t.splits; ++split)",
        "for (int split = 2; split < t.splits; ++split)",
        "test_conv_fft_kernels.py -k test_weight_gradient_of_many_tiles",
    ),
    Mutant(
        "fft_real_rows_mixed",
        "fft.cuh",
        "z[partner] = make_float2(0.5f * d.y, -0.5f * d.x);",
        "z[partner] = make_float2(0.5f * d.y, 0.5f * d.x);",
        "test_conv_fft_kernels.py -k test_one_pixel_gives_the_filter",
    ),
    Mutant(
        "fft_convolution_for_correlation",
        "fft_multiply.cu",
        "sum.y = multiply_add(-re, columns[2 * j + 1],",
        "sum.y = multiply_add(re, columns[2 * j + 1],",
        "test_conv_fft_kernels.py -k test_one_pixel_gives_the_filter",
    ),
    Mutant(
        "fft_later_chunks_overwrite",
        "fft_multiply.cu",
        "p.c_columns, done > 0 || p.add);",
        "p.c_columns, done > 0);",
        "test_conv_fft_kernels.py -k test_weight_gradient_of_many_tiles",
    ),
    Mutant(
        "fft_terms_past_the_last",
        "fft_multiply.cuh",
        "exists && term < remaining ? 16 : 0",
        "exists ? 16 : 0",
        "test_conv_fft_kernels.py -k test_errors_are_bounded and vgg and 16",
    ),
    Mutant(
        "fft_tensor_convolution_for_correlation",
        "fft_multiply_tensor.cu",
        "turned[3] = a[1] ^ SIGN;",
        "turned[3] = a[1];",
        "test_conv_fft_tensor_kernels.py -k test_products_are_exact and 2-2-1 and 32x32",
    ),
    Mutant(
        "fft_tensor_without_low_parts",
        "fft_multiply_tensor.cu",
        "mma_tf32(products, low, b_high);",
        "",
        "test_conv_fft_tensor_kernels.py -k test_products_are_exact and 2-2-1 and 32x32",
    ),
    Mutant(
        "fft_tensor_later_chains_overwrite",
        "fft_multiply_tensor.cu",
        "done > CHAIN || p.add);",
        "p.add);",
        "test_conv_fft_tensor_kernels.py -k test_more_terms_than_a_chain_are_exact",
    ),
    Mutant(
        "fft_tensor_reads_stages_too_early",
        "fft_multiply_tensor.cu",
        "copy_async_wait<STAGES - 2>();",
        "copy_async_wait<STAGES - 1>();",
        "test_conv_fft_tensor_kernels.py -k test_products_are_exact and 130-66-57 and 32x32",
    ),
    Mutant(
        "im2col_left_padding_unchecked",
        "im2col.cu",
        "h >= 0 && h < s.H && w >= 0 && w < s.W;",
        "h >= 0 && h < s.H && w < s.W;",
        "test_conv_kernels.py -k test_exact_on_integers and im2col and vgg",
    ),
    Mutant(
        "col2im_ignores_stride",
        "im2col.cu",
        "return rest == 0 && window < windows ? window : -1;",
        "return window < windows ? window : -1;",
        "test_conv_kernels.py -k test_exact_on_integers and im2col and alexnet",
    ),
    Mutant(
        "direct_wrong_group_of_bias",
        "conv2d_direct.cuh",
        "g.bias ? g.bias[group * g.filters + filter] : 0.0f",
        "g.bias ? g.bias[filter] : 0.0f",
        "test_conv_direct_kernels.py -k test_exact_on_integers and groups",
    ),
    Mutant(
        "direct_phase_without_taps_skipped",
        "conv2d_axis.cuh",
        "while (first < end && (phase + padding - first * dilation) % stride != 0) ++first;",
        "while (first + 1 < end && (phase + padding - first * dilation) % stride != 0) ++first;",
        "test_conv_direct_kernels.py -k test_exact_on_integers and pointwise_stride2",
    ),
    Mutant(
        "direct_weight_one_chain_of_sums",
        "conv2d_direct_backward_weight.cuh",
        "constexpr int FLUSH = 4096;",
        "constexpr int FLUSH = 1 << 30;",
        "test_conv_direct_kernels.py -k test_weight_gradient_of_many_pixels and one_range",
    ),
    Mutant(
        "first_layer_stores_past_the_row",
        "conv2d_direct_first_layer.cu",
        "if (column + 4 < c.Q) store4(output + 4,",
        "store4(output + 4,",
        "test_conv_direct_kernels.py -k test_exact_on_integers and first_layer3_half",
    ),
    Mutant(
        "depthwise_filters_not_rotated",
        "conv2d_depthwise.cuh",
        "g.weights[first + (g.rotated ? TAPS * TAPS - 1 - t : t)]",
        "g.weights[first + t]",
        "test_conv_direct_kernels.py -k test_exact_on_integers and depthwise3",
    ),
    Mutant(
        "depthwise_right_border",
        "conv2d_depthwise.cuh",
        "inside && column >= 0 && column < width ? to_float(row[column]) : 0.0f;",
        "inside && column >= 0 && column <= width ? to_float(row[column]) : 0.0f;",
        "test_conv_direct_kernels.py -k test_exact_on_integers and depthwise3",
    ),
    Mutant(
        "depthwise_last_way_left_out",
        "conv2d_depthwise_last.cuh",
        "*slot = turn == 0 ? sum[t / TAPS]",
        "*slot = turn <= 1 ? sum[t / TAPS]",
        "test_conv_direct_half_kernels.py -k test_exact_on_integers and last and 3_stride2",
    ),
    Mutant(
        "depthwise_last_no_barrier_between_ways",
        "conv2d_depthwise_last.cuh",
        "                }\n        }\n        __syncthreads();\n    }\n",
        "                }\n        }\n    }\n    __syncthreads();\n",
        "test_conv_direct_half_kernels.py -k test_sound and depthwise_last",
    ),
    Mutant(
        "direct_half_strides_of_the_other_image",
        "conv2d_direct_backward_weight.cuh",
        "const ImageStrides &xs = g.x_strides, &gys = g.gy_strides;",
        "const ImageStrides &xs = g.gy_strides, &gys = g.gy_strides;",
        "test_conv_direct_half_kernels.py -k test_exact_on_integers and groups_of_5",
    ),
    Mutant(
        "winograd_input_transform_of_wrong_sign",
        "winograd.cuh",
        "d[3 * step] = d3 - d1;",
        "d[3 * step] = d1 - d3;",
        "test_conv_winograd_kernels.py -k test_exact_on_integers and 96KB-vgg",
    ),
    Mutant(
        "winograd_without_swizzle",
        "winograd.cuh",
        "return index ^ term * (ROWS / TERMS);",
        "return index;",
        "test_conv_winograd_kernels.py -k test_memory_traffic and NHWC and 96KB",
    ),
    Mutant(
        "winograd_results_overwritten",
        "winograd.cuh",
        "if (round > 0) __syncthreads();  // the round before has been read",
        "",
        "test_conv_winograd_kernels.py -k test_sound and 96KB-two_blocks",
    ),
    Mutant(
        "winograd_next_chunk_over_results",
        "winograd.cu",
        "if (begin > 0) __syncthreads();  // the results before have been read",
        "",
        "test_conv_winograd_kernels.py -k test_chunks_have_no_races",
    ),
    Mutant(
        "winograd_one_chain_of_sums",
        "winograd.cu",
        "constexpr int CHANNEL_CHUNK = 512;",
        "constexpr int CHANNEL_CHUNK = 1 << 20;",
        "test_conv_winograd_kernels.py -k test_errors_are_bounded and 2048",
    ),
    Mutant(
        "winograd_channels_past_the_last",
        "winograd.cu",
        "channel + term < s.channels ? bits : 0",
        "bits",
        "test_conv_winograd_kernels.py -k test_sound and 96KB-two_blocks",
    ),
    Mutant(
        "winograd_filters_not_rotated",
        "winograd_filters.cu",
        "ROTATED ? TAPS - 1 - tap : tap",
        "tap",
        "test_conv_winograd_kernels.py -k test_exact_on_integers and 96KB-vgg",
    ),
    Mutant(
        "winograd_weight_tiles_of_the_next_split",
        "winograd_backward_weight.cu",
        "const bool exists = tile < end;",
        "const bool exists = tile <= end;",
        "test_conv_winograd_kernels.py -k test_exact_on_integers and 96KB-vgg",
    ),
    Mutant(
        "winograd_weight_one_chain_of_sums",
        "winograd_backward_weight.cu",
        "constexpr int TILE_CHUNK = 512;",
        "constexpr int TILE_CHUNK = 1 << 20;",
        "test_conv_winograd_kernels.py -k test_long_sums_of_the_weight_gradient and one_part",
    ),
    Mutant(
        "max_pool_last_of_equal_values",
        "max_pool2d.cu",
        "if (value > best.value || value != value)",
        "if (value >= best.value || value != value)",
        "test_pool_kernels.py -k test_max and lenet_s2",
    ),
    Mutant(
        "max_pool_padding_wins",
        "max_pool2d.cu",
        "to_float(plane[h * pool.x_stride[2] + w * pool.x_stride[3]]) : -INFINITY;",
        "to_float(plane[h * pool.x_stride[2] + w * pool.x_stride[3]]) : 0.0f;",
        "test_pool_kernels.py -k test_max and many_planes",
    ),
    Mutant(
        "avg_pool_padding_always_counts",
        "pool.cuh",
        "border = pool.count_include_pad ? pool.padding[AXIS] : 0;",
        "border = pool.padding[AXIS];",
        "test_pool_kernels.py -k test_average and many_planes",
    ),
    Mutant(
        "adaptive_window_ends_early",
        "pool.cuh",
        "divide(end + pool.outputs[AXIS] - 1, outputs)};",
        "divide(end, outputs)};",
        "test_pool_kernels.py -k test_adaptive_average",
    ),
    Mutant(
        "adaptive_max_of_the_last_lane",
        "adaptive_max_pool2d.cu",
        " || (equal && b.place < a.place) ? b : a;",
        " ? b : a;",
        "test_pool_kernels.py -k test_adaptive_max",
    ),
    Mutant(
        "lp_pool_divides_by_zero",
        "lp_pool2d.cu",
        "if (y[window] != 0.0f) sum +=",
        "sum +=",
        "test_pool_kernels.py -k l2_of_integers or functions_as_on_the_cpu",
    ),
    Mutant(
        "unpool_first_of_equal_places",
        "max_unpool2d.cu",
        "int later = threadIdx.x + 1; later < UNPOOL_THREADS;",
        "int later = 0; later < static_cast<int>(threadIdx.x);",
        "test_pool_kernels.py -k test_the_last_of_many_values_wins",
    ),
    Mutant(
        "unpool_no_barrier_after_the_zeros",
        "max_unpool2d.cu",
        "        __syncthreads();  // the zeros, or the values before these, are written, and their places compared\n",
        "",
        "test_pool_kernels.py -k test_unpooling_is_sound",
    ),
    Mutant(
        "response_norm_window_too_narrow",
        "local_response_norm.cu",
        "end = min(w.after + 1, w.channels - c);",
        "end = min(w.after, w.channels - c);",
        "test_normalization_kernels.py -k test_response_norm_of_integers and channels_last",
    ),
    Mutant(
        "response_norm_window_not_mirrored",
        "local_response_norm.cu",
        "int newest = slots - 1, center = w.before;",
        "int newest = slots - 1, center = w.after;",
        "test_normalization_kernels.py -k test_response_norm_of_layouts and contiguous",
    ),
    Mutant(
        "batch_norm_group_past_the_end",
        "batch_norm.cu",
        "const float distance = k < count ? values[k] - mean : 0.0f;",
        "const float distance = values[k] - mean;",
        "test_normalization_kernels.py -k test_batch_norm_of_integers",
    ),
    Mutant(
        "batch_norm_biased_running_variance",
        "batch_norm.cu",
        "momentum * (variance * unbias);",
        "momentum * variance;",
        "test_normalization_kernels.py -k test_running_statistics_by_hand",
    ),
    Mutant(
        "batch_norm_backward_as_if_the_mean_were_constant",
        "batch_norm_backward.cu",
        "(gradient[k] - shift[k] - (value[k] - center[k]) * rate[k]);",
        "(gradient[k] - (value[k] - center[k]) * rate[k]);",
        "test_normalization_kernels.py -k test_functional_as_on_the_cpu",
    ),
    Mutant(
        "dropout_words_out_of_order",
        "dropout.cu",
        "words.x >= threshold, words.y >= threshold, words.z >= threshold, words.w >= threshold",
        "words.x >= threshold, words.z >= threshold, words.y >= threshold, words.w >= threshold",
        "test_dropout_kernels.py -k test_masks_of_the_cpu",
    ),
    Mutant(
        "dropout_counter_of_32_bits",
        "dropout.cu",
        "static_cast<unsigned>(counter >> 32), 0, 0);",
        "0, 0, 0);",
        "test_dropout_kernels.py -k test_masks_of_the_cpu",
    ),
    Mutant(
        "relu_loses_nan",
        "relu.cu",
        "(float v) { return v <= 0.0f ? 0.0f : v; }",
        "(float v) { return v > 0.0f ? v : 0.0f; }",
        "test_activation_kernels.py -k test_special_values and relu",
    ),
    Mutant(
        "sigmoid_overflows",
        "activation.cu",
        "const float e = expf(-fabsf(x));",
        "const float e = expf(-x);",
        "test_activation_kernels.py -k sigmoid",
    ),
    Mutant(
        "elementwise_step_of_one_block",
        "elementwise.cuh",
        "for (int64 i = global_thread(); i < count; i += global_threads())\n            y[i]",
        "for (int64 i = global_thread(); i < count; i += blockDim.x)\n            y[i]",
        "test_activation_kernels.py -k test_sound and relu",
    ),
    Mutant(
        "softmax_of_minus_infinity_alone",
        "softmax.cuh",
        "small.largest == large.largest ? 1.0f : expf(small.largest - large.largest);",
        "expf(small.largest - large.largest);",
        "test_loss_kernels.py -k test_extreme_rows",
    ),
    Mutant(
        "softmax_warps_left_out",
        "softmax.cuh",
        "for (int warp = 0; warp < WARPS; ++warp) {",
        "for (int warp = 1; warp < WARPS; ++warp) {",
        "test_loss_kernels.py -k test_equal_scores_exactly",
    ),
    Mutant(
        "cross_entropy_reads_at_a_wrong_label",
        "softmax_cross_entropy.cu",
        "is_class(label, classes) ? -(1.0f - smoothing) * (x[label] - total.largest - log_sum) : NAN;",
        "-(1.0f - smoothing) * (x[label] - total.largest - log_sum);",
        "test_loss_kernels.py -k test_a_wrong_label_on_the_device_is_nan",
    ),
    Mutant(
        "cross_entropy_smoothing_left_out",
        "softmax_cross_entropy.cu",
        "const float target = smoothing / classes + (i == label ? 1.0f - smoothing : 0.0f);",
        "const float target = i == label ? 1.0f - smoothing : 0.0f;",
        "test_loss_kernels.py -k test_cross_entropy_against_its_definition",
    ),
    Mutant(
        "sum_of_unaligned_rows_begins_late",
        "reduce.cu",
        "for (int64 i = begin + 4 * quads + thread; i < end; i += stride) sums.x",
        "for (int64 i = begin + 4 * quads + thread; i + 1 < end; i += stride) sums.x",
        "test_reduce_kernels.py -k test_all_elements_exactly",
    ),
    Mutant(
        "sum_one_after_the_other",
        "reduce.cu",
        "for (int64 i = begin + warp; i < end; i += WARPS) sum += plane[i * inner + column];",
        "for (int64 i = begin; warp == 0 && i < end; ++i) sum += plane[i * inner + column];",
        "test_reduce_kernels.py -k test_chains_are_short",
    ),
    Mutant(
        "update_tail_by_every_thread",
        "update.cu",
        "for (int64 i = 4 * quads + global_thread(); i < count; i += global_threads()) update_one",
        "for (int64 i = 4 * quads; i < count; ++i) update_one",
        "test_update_kernels.py -k test_sgd_exactly",
    ),
    Mutant(
        "update_momentum_of_the_first_step",
        "update.cu",
        "velocity[0] = step.first != 0.0f ? g : run_mean(velocity[0], g, step.momentum, step.gradient_share);",
        "velocity[0] = run_mean(step.first != 0.0f ? 0.0f : velocity[0], g, step.momentum, step.gradient_share);",
        "test_update_kernels.py -k test_as_in_float64_on_the_cpu and momentum",
    ),
    Mutant(
        "update_centered_variance_below_zero",
        "update.cu",
        "variance = rest < 0.0f ? 0.0f : rest;",
        "variance = rest;",
        "test_update_kernels.py -k test_constant_gradients_have_no_variance",
    ),
    Mutant(
        "update_l1_decay_of_zero",
        "update.cu",
        "p < 0.0f ? -1.0f : p);",
        "-1.0f);",
        "test_update_kernels.py -k test_l1_decay_on_the_device",
    ),
    Mutant(
        "update_repeats_its_numbers",
        "update.cu",
        "return now ? *reinterpret_cast<const Step*>(now) : given;",
        "return given;",
        "test_captured_step.py -k test_optimisers and sgd",
    ),
    Mutant(
        "dropout_repeats_its_stream",
        "dropout.cu",
        "offset += stream[1];",
        "offset += 0 * stream[1];",
        "test_captured_step.py -k test_replays_without_refresh",
    ),
)

# Primitives by themselves.
OF_PRIMITIVES = (
    Mutant(
        "mbarrier_wrong_parity",
        "ptx_barrier.cuh",
        "simulator::barrier_wait(barrier, parity, {__FILE__",
        "simulator::barrier_wait(barrier, parity ^ 1, {__FILE__",
        "test_barrier.py -k test_ring",
    ),
    Mutant(
        "mbarrier_arrival_without_bytes",
        "ptx_barrier.cuh",
        "simulator::barrier_arrive(barrier, bytes, {__FILE__",
        "simulator::barrier_arrive(barrier, 0, {__FILE__",
        "test_barrier.py -k test_boxes_one_after_the_other",
    ),
    Mutant(
        "missing_proxy_fence",
        "ptx_barrier.cuh",
        "    simulator::fence_async();\n",
        "",
        "test_barrier.py -k test_boxes_one_after_the_other",
    ),
    Mutant(
        "tma_wrong_swizzle",
        "ptx_tma.cuh",
        "(offset >> 7 & (BYTES / 16 - 1)) << 4",
        "(offset >> 8 & (BYTES / 16 - 1)) << 4",
        "test_tma.py -k test_through_shared_memory",
    ),
)

# Of sm_90's pipeline.
HOPPER = (
    Mutant(
        "hopper_terms_of_the_step_before",
        "gemm_hopper.cuh",
        "        term += Tile::TERMS;\n",
        "        term += Tile::TERMS / 2;\n",
        "test_gemm_hopper_kernels.py -k test_tf32",
    ),
    Mutant(
        "half_planes_without_the_last",
        "conv2d_half_add.cu",
        "split < s.splits; ++split) sum += planes",
        "split < s.splits - 1; ++split) sum += planes",
        "test_conv_half_kernels.py -k test_bias_residual_and_relu",
    ),
    Mutant(
        "unscale_overlooks_infinity",
        "unscale.cu",
        "return fabsf(value) < INFINITY;",
        "return value == value;",
        "test_mixed_precision.py -k test_unscaling_many_gradients",
    ),
    Mutant(
        "adam_counts_skipped_steps",
        "update.cu",
        "const double made = counted.step - skips[0];",
        "const double made = counted.step;",
        "test_mixed_precision.py -k test_skipped_steps_leave_no_trace and adamw",
    ),
    Mutant(
        "skipped_step_made",
        "update.cu",
        "return scaling && scaling[3] != 0.0f;",
        "return scaling && scaling[3] > 1.0f;",
        "test_mixed_precision.py -k test_skipped_steps_leave_no_trace and momentum",
    ),
    Mutant(
        "hopper_stage_overwritten_unasked",
        "tile_hopper.cuh",
        "barrier_wait(ring.empty(ring.stage), ring.parity ^ 1);\n",
        "\n",
        "test_gemm_hopper_kernels.py -k test_sound and race",
    ),
    Mutant(
        "hopper_producer_waits_for_the_wrong_lap",
        "tile_hopper.cuh",
        "ring.parity ^ 1",
        "ring.parity",
        "test_gemm_hopper_kernels.py -k test_tf32",
    ),
    Mutant(
        "hopper_consumer_waits_for_the_wrong_lap",
        "tile_hopper.cuh",
        "barrier_wait(ring.full(ring.stage), ring.parity);",
        "barrier_wait(ring.full(ring.stage), ring.parity ^ 1);",
        "test_gemm_hopper_kernels.py -k test_tf32",
    ),
    Mutant(
        "hopper_stage_given_back_too_early",
        "tile_hopper.cuh",
        "if (step > 0) ring.give_back(lane);\n        ring.next();",
        "ring.next();\n        ring.give_back(lane);",
        "test_gemm_hopper_kernels.py -k test_sound and race",
    ),
    Mutant(
        "hopper_wrong_descriptor_stride",
        "tile_hopper.cuh",
        "ROWS ? Tile::SLAB_BYTES : 16, PATTERN_BYTES)",
        "ROWS ? Tile::SLAB_BYTES : 16, PATTERN_BYTES / 2)",
        "test_gemm_hopper_kernels.py -k test_tf32",
    ),
    Mutant(
        "hopper_wrong_distance_of_slabs",
        "tile_hopper.cuh",
        "Tile::SLAB_BYTES : 16, PATTERN_BYTES)",
        "PATTERN_BYTES : 16, PATTERN_BYTES)",
        "test_gemm_hopper_kernels.py -k test_deep_products_and_tails and bfloat16 and nn",
    ),
    Mutant(
        "hopper_wrong_swizzle",
        "tile_hopper.cuh",
        "piece + swizzle<LINE_BYTES>(place + odd * 64)",
        "piece + swizzle<64>(place + odd * 64)",
        "test_gemm_hopper_kernels.py -k test_tf32",
    ),
    Mutant(
        "hopper_rows_share_banks",
        "tile_hopper.cuh",
        "const int odd = lane_row % 2;",
        "const int odd = 0;",
        "test_hopper_counters.py -k test_products and float32-nt",
    ),
    Mutant(
        "hopper_no_fence_before_the_store",
        "tile_hopper.cuh",
        "        fence_async_shared();\n",
        "",
        "test_gemm_hopper_kernels.py -k test_sound and race",
    ),
    Mutant(
        "hopper_sums_read_before_their_wait",
        "tile_hopper.cuh",
        "    wgmma_wait<0>();\n",
        "    wgmma_wait<1>();\n",
        "test_gemm_hopper_kernels.py -k test_tf32",
    ),
    Mutant(
        "hopper_buffer_written_before_it_is_read",
        "tile_hopper.cuh",
        "tma_store_wait_read<PIECES - 1>();",
        "tma_store_wait_read<PIECES>();",
        "test_gemm_hopper_kernels.py -k test_sound and race",
    ),
    Mutant(
        "hopper_tail_row_stored",
        "tile_hopper.cuh",
        "if (m < shape.M && n < shape.N) c[",
        "if (m <= shape.M && n < shape.N) c[",
        "test_gemm_hopper_kernels.py -k test_rows_of_c_that_no_map_has",
    ),
    Mutant(
        "hopper_pair_asks_its_own_consumers_alone",
        "tile_hopper.cuh",
        "if (lane < Tile::CLUSTER) barrier_arrive_cluster(empty(previous()), lane);",
        "if (lane < Tile::CLUSTER) barrier_arrive(empty(previous()));",
        "test_gemm_hopper_kernels.py -k test_pairs_are_sound and race",
    ),
    Mutant(
        "hopper_pair_counts_its_own_consumers_alone",
        "tile_hopper.cuh",
        "Tile::CLUSTER * CONSUMERS * WARPGROUP",
        "CONSUMERS * WARPGROUP",
        "test_gemm_hopper_kernels.py -k test_the_halves_of_b_arrive_in_any_order",
    ),
    Mutant(
        "hopper_pair_sends_to_one_block",
        "tile_hopper.cuh",
        "(1 << BLOCKS) - 1",
        "1 << BLOCKS - 1",
        "test_gemm_hopper_kernels.py -k test_the_halves_of_b_arrive_in_any_order",
    ),
    Mutant(
        "hopper_pair_brings_one_half_twice",
        "tile_hopper.cuh",
        "cluster_rank() * Tile::SHARE",
        "0 * Tile::SHARE",
        "test_gemm_hopper_kernels.py -k test_the_halves_of_b_arrive_in_any_order",
    ),
    Mutant(
        "hopper_pair_ends_before_its_partner",
        "tile_hopper.cuh",
        "    if constexpr (Tile::CLUSTER > 1) wait_for_all<Tile>();\n",
        "",
        "test_gemm_hopper_kernels.py -k test_the_halves_of_b_arrive_in_any_order",
    ),
    Mutant(
        "hopper_pair_starts_before_its_partner",
        "tile_hopper.cuh",
        "    } else {\n        __syncwarp();\n        cluster_wait();\n    }",
        "    } else {\n        __syncthreads();\n    }",
        "test_gemm_hopper_kernels.py -k test_the_halves_of_b_arrive_in_any_order",
    ),
    Mutant(
        "hopper_pair_brings_patches_twice",
        "conv2d_hopper.cuh",
        "share_start<Tile>() / Tile::SLAB",
        "0 / Tile::SLAB",
        "test_conv2d_hopper_kernels.py -k test_pairs_of_blocks and backward_weight",
    ),
    Mutant(
        "float32_hopper_product_of_parts_left_out",
        "tile_float32_hopper.cuh",
        "A[PART_PRODUCTS] = {2, 0, 1, 1, 0, 0}",
        "A[PART_PRODUCTS] = {2, 0, 2, 1, 0, 0}",
        "test_gemm_float32_hopper_kernels.py -k test_errors",
    ),
    Mutant(
        "float32_hopper_step_goes_on_from_old_sums",
        "tile_float32_hopper.cuh",
        "product > 0 || slice > 0);",
        "true);",
        "test_gemm_float32_hopper_kernels.py -k test_few_terms",
    ),
    Mutant(
        "float32_hopper_stage_given_back_too_early",
        "tile_float32_hopper.cuh",
        "const int stage = ring.stage - 1 - LATER;",
        "const int stage = ring.stage - 1;",
        "test_gemm_float32_hopper_kernels.py -k test_sound and race",
    ),
    Mutant(
        "float32_hopper_products_read_before_their_wait",
        "tile_float32_hopper.cuh",
        "    wgmma_wait<LATER>();\n",
        "    wgmma_wait<1>();\n",
        "test_gemm_float32_hopper_kernels.py -k test_few_terms",
    ),
    Mutant(
        "float32_hopper_wrong_descriptor_stride",
        "tile_float32_hopper.cuh",
        "constexpr int PATTERN = 8 * PART_ROW_BYTES;",
        "constexpr int PATTERN = 4 * PART_ROW_BYTES;",
        "test_gemm_float32_hopper_kernels.py -k test_few_terms",
    ),
    Mutant(
        "float32_hopper_parts_of_the_first_images",
        "conv2d_float32_hopper.cu",
        "image + part * walk.images",
        "image",
        "test_conv2d_float32_hopper_kernels.py -k test_errors and forward",
    ),
    Mutant(
        "float32_hopper_taps_not_turned",
        "conv2d_float32_hopper.cu",
        "walk.turned ? walk.taps - 1 - tap : tap",
        "tap",
        "test_conv2d_float32_hopper_kernels.py -k test_unequal_sides and backward_input",
    ),
    Mutant(
        "split_loses_the_last_bits",
        "split_hopper.cu",
        "rest[i] -= taken.x, rest[i + 1] -= taken.y;",
        "rest[i] -= taken.x, rest[i + 1] = 0.0f;",
        "test_gemm_float32_hopper_kernels.py -k test_parts_add_up",
    ),
    Mutant(
        "split_term_past_the_last",
        "split_hopper.cu",
        "term + k < shape.terms ? from[k] : 0.0f",
        "from[k]",
        "test_gemm_float32_hopper_kernels.py -k test_parts_add_up",
    ),
    Mutant(
        "hopper_taps_turned",
        "conv2d_hopper.cuh",
        "column * walk.dilation_w, row * walk.dilation_h",
        "row * walk.dilation_w, column * walk.dilation_h",
        "test_conv2d_hopper_kernels.py -k test_pixels_reach_over_images and forward",
    ),
    Mutant(
        "hopper_phase_without_its_offset",
        "conv2d_phases_hopper.cuh",
        "walk.offset_h[phase] + row * walk.step_h",
        "row * walk.step_h",
        "test_conv2d_hopper_kernels.py -k test_phases_of_strides and 7x5 and 128x128",
    ),
    Mutant(
        "hopper_phase_splits_lose_steps",
        "conv2d_phases_hopper.cuh",
        "share = ceil_div(all, shape.splits)",
        "share = all / shape.splits",
        "test_conv2d_hopper_kernels.py -k test_sums_in_planes and bfloat16",
    ),
    Mutant(
        "hopper_line_read_before_it_is_written",
        "conv2d_phases_hopper.cuh",
        "        named_barrier_wait(1 + group, WARPGROUP);\n",
        "",
        "test_conv2d_hopper_kernels.py -k test_sound and race and phases",
    ),
    Mutant(
        "hopper_bias_of_the_first_group",
        "tile_hopper.cuh",
        "bias + at.batch * bias_batch",
        "bias",
        "test_conv2d_hopper_kernels.py -k test_groups and forward and bundles",
    ),
    Mutant(
        "hopper_bundle_without_zeros",
        "conv2d_hopper.cuh",
        "round_to<Type>(own ? to_float(weights[from]) : 0.0f)",
        "round_to<Type>(to_float(weights[from]))",
        "test_conv2d_hopper_kernels.py -k test_groups and forward and bundles",
    ),
    Mutant(
        "hopper_split_starts_at_the_first_slab",
        "conv2d_hopper.cuh",
        "slab = step / walk.taps, tap = step % walk.taps;",
        "slab = 0, tap = step % walk.taps;",
        "test_conv2d_hopper_kernels.py -k test_sums_in_planes and bfloat16",
    ),
    Mutant(
        "planes_rows_too_near",
        "conv2d_planes_hopper.cuh",
        "row = 64 * line, eight",
        "row = 32 * line, eight",
        "test_conv2d_planes_hopper_kernels.py -k test_deep_products_and_tails and 128x128",
    ),
    Mutant(
        "planes_swizzle_of_all_widths_alike",
        "conv2d_planes_pieces.cuh",
        "offset >> 7 & (width / 8 - 1)",
        "offset >> 7 & 7",
        "test_conv2d_planes_hopper_kernels.py -k test_deep_products_and_tails and 128x128",
    ),
    Mutant(
        "planes_residual_read_before_it_is_there",
        "conv2d_planes_hopper.cuh",
        "const_cast<Type*>(c.residual));\n            named_barrier_wait(1 + group, WARPGROUP);",
        "const_cast<Type*>(c.residual));",
        "test_conv2d_planes_hopper_kernels.py -k test_sound and race-64x256",
    ),
    Mutant(
        "planes_tail_column_stored",
        "conv2d_planes_pieces.cuh",
        "w < walk.width;",
        "w <= walk.width;",
        "test_conv2d_planes_hopper_kernels.py -k test_random_forward",
    ),
    Mutant(
        "planes_slab_of_the_wrong_tap",
        "conv2d_planes_weights_hopper.cuh",
        "tap = number / steps.slabs, r",
        "tap = number % steps.taps, r",
        "test_conv2d_planes_hopper_kernels.py -k test_deep_weight_gradient",
    ),
)

MUTANTS = GENERAL + OF_KERNELS + OF_PRIMITIVES + HOPPER


def run(mutant: Mutant) -> tuple[bool, str]:
    """Whether the tests catch a mutant, and which does, or why none."""
    text = (sources.folder() / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        return False, f"the text to replace stands {text.count(mutant.old)} times in {mutant.file}"
    with tempfile.TemporaryDirectory() as folder:
        for path in (*sources.folder().glob("*.cu"), *sources.headers()):
            shutil.copy(path, folder)
        Path(folder, mutant.file).write_text(text.replace(mutant.old, mutant.new))
        return _verdict(*_test(mutant.test, Path(folder)))


def _test(test: str, folder: Path) -> tuple[int | None, str]:
    """(pytest's exit status, its output) of tests on the kernels in a folder; None if they do not end in time."""
    file, *options = test.split(" ", 2)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--kernels", str(folder)]
    try:
        result = subprocess.run(
            [*command, f"tests/{file}", *options], cwd=ROOT, env={**os.environ, "COLUMNS": "250"},
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, ""
    return result.returncode, result.stdout


def _verdict(status: int | None, output: str) -> tuple[bool, str]:
    if status is None:
        return False, f"its tests did not end within {SECONDS} s"
    if re.search(r"RuntimeError: simulator: .* failed:$", output, re.MULTILINE):
        return False, "it does not compile"
    failed = re.search(r"^FAILED tests/\S+?::(.*)$", output, re.MULTILINE)
    if status != 1 or not failed:
        return False, f"not caught (pytest ended with {status})"
    return True, f"caught by {failed[1]}"


def passes(test: str) -> bool:
    """Whether tests pass on the kernels as they are."""
    return _test(test, sources.folder())[0] == 0


def main(names: list[str]) -> int:
    """Run the mutants of these names, or all; 0 if each is caught, 1 if not, 2 for a name that is none's."""
    unknown = sorted(set(names) - {mutant.name for mutant in MUTANTS})
    if unknown:
        known = "\n  ".join(mutant.name for mutant in MUTANTS)
        print(f"mutants: there is no {', '.join(unknown)}; there are\n  {known}", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    pool = ThreadPoolExecutor(2)
    try:
        return _run_all(chosen, pool)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        pool.shutdown(cancel_futures=True)


def _run_all(chosen: list[Mutant], pool: ThreadPoolExecutor) -> int:
    tests = sorted({mutant.test for mutant in chosen})
    sound = dict(zip(tests, pool.map(passes, tests), strict=True))
    missed = []
    for mutant, (found, text) in zip(chosen, pool.map(run, chosen), strict=True):
        if not sound[mutant.test]:
            found, text = False, f"{mutant.test} fails on the kernels as they are"
        missed += [] if found else [mutant.name]
        print(f"{mutant.name}: {text}", flush=True)
    print(f"caught/planted: {len(chosen) - len(missed)}/{len(chosen)}" + "".join(f"; not {name}" for name in missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
