#pragma once

// Quantizes blocks as ggml-cuda does, with ggml's own converters.

#include "common.cuh"

#define QUANTIZE(name, type)                                                                                                     \
    static inline void quantize_f32_##name##_block(const float * x, block_##name * y) {                                          \
        ggml_get_type_traits(type)->from_float_ref(x, y, ggml_blck_size(type));                                                  \
    }

QUANTIZE(q4_0, GGML_TYPE_Q4_0)
QUANTIZE(q4_1, GGML_TYPE_Q4_1)
QUANTIZE(q5_0, GGML_TYPE_Q5_0)
QUANTIZE(q5_1, GGML_TYPE_Q5_1)
QUANTIZE(q8_0, GGML_TYPE_Q8_0)
QUANTIZE(iq4_nl, GGML_TYPE_IQ4_NL)

#undef QUANTIZE
