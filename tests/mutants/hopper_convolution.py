"""Hopper's convolutions: patches, phases, rectangles, groups."""

from tests.mutants.mutant import Mutant

HOPPER_CONVOLUTION = (
    Mutant(
        "hopper_pair_brings_patches_twice",
        "conv2d_hopper.cuh",
        "share_start<Tile>() / Tile::SLAB",
        "0 / Tile::SLAB",
        "test_conv2d_hopper_kernels.py -k test_pairs_of_blocks and backward_weight",
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
