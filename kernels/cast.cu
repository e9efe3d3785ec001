// y = x in another dtype, rounded to nearest, ties to even. y is overwritten.
#include "elementwise.cuh"
#include "ptx_convert.cuh"

#define CAST(from, From, to, To)                                                                             \
    KERNEL(256, 4) cast_##from##_##to(const From* x, To* y, int64 count) {                                    \
        for (int64 i = global_thread(); i < count; i += global_threads()) y[i] = round_to<To>(to_float(x[i])); \
    }

CAST(float32, float, bfloat16, bfloat16)
CAST(float32, float, float16, float16)
CAST(bfloat16, bfloat16, float32, float)
CAST(float16, float16, float32, float)
CAST(bfloat16, bfloat16, float16, float16)
CAST(float16, float16, bfloat16, bfloat16)
