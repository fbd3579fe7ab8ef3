#pragma once

// Reads rows as ggml-cuda's flash attention does, with ggml's own converters.

#include "common.cuh"

template <typename T>
static void store_as(void * out, int i, float x) {
    if constexpr (sizeof(T) == sizeof(half)) {
        ((half *) out)[i] = __float2half(x);
    } else {
        ((float *) out)[i] = x;
    }
}

template <typename T, int n>
static void read_numbers(ggml_type type, const void * row, void * out, int64_t first) {
    const int64_t block = ggml_blck_size(type);
    float         x[32];
    for (int i = 0; i < n; ++i) {
        ggml_get_type_traits(type)->to_float((const char *) row + (first + i) / block * ggml_type_size(type), x, block);
        store_as<T>(out, i, x[(first + i) % block]);
    }
}

#define DEQUANTIZE(name, type)                                                                                                   \
    template <typename T, int n>                                                                                                 \
    static void dequantize_V_##name(const void * x, void * out, int64_t i) {                                                     \
        read_numbers<T, n>(type, x, out, i);                                                                                     \
    }

DEQUANTIZE(f16, GGML_TYPE_F16)
DEQUANTIZE(bf16, GGML_TYPE_BF16)
DEQUANTIZE(q4_0, GGML_TYPE_Q4_0)
DEQUANTIZE(q4_1, GGML_TYPE_Q4_1)
DEQUANTIZE(q5_0, GGML_TYPE_Q5_0)
DEQUANTIZE(q5_1, GGML_TYPE_Q5_1)
DEQUANTIZE(q8_0, GGML_TYPE_Q8_0)

#undef DEQUANTIZE
