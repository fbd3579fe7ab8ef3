#include "minicache-cpu-rows.h"

#include "ggml-cpu.h"
#include "quants.h"
#include "simd-mappings.h"

#include <cstring>

static void read_f32(const void * row, float * out, int64_t n) { memcpy(out, row, n * sizeof(float)); }

static void read_f16(const void * row, float * out, int64_t n) { ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) row, out, n); }

static void read_bf16(const void * row, float * out, int64_t n) { ggml_cpu_bf16_to_fp32((const ggml_bf16_t *) row, out, n); }

// The two formats that long contexts are kept in most are read here rather than by ggml's converters: those live in
// ggml-base, which is built for the lowest common instruction set.

// The quants are copied out first: bytes may alias the output, and the compiler would not vectorise past that.

static void read_q8_0(const void * row, float * out, int64_t n) {
    const auto * blocks = (const block_q8_0 *) row;
    for (int64_t i = 0; i < n / QK8_0; ++i) {
        int8_t qs[QK8_0];
        memcpy(qs, blocks[i].qs, sizeof(qs));

        const float d = GGML_CPU_FP16_TO_FP32(blocks[i].d);
        for (int j = 0; j < QK8_0; ++j) {
            out[i * QK8_0 + j] = d * (float) qs[j];
        }
    }
}

static void read_q4_0(const void * row, float * out, int64_t n) {
    const auto * blocks = (const block_q4_0 *) row;
    for (int64_t i = 0; i < n / QK4_0; ++i) {
        uint8_t qs[QK4_0 / 2];
        memcpy(qs, blocks[i].qs, sizeof(qs));

        const float d  = GGML_CPU_FP16_TO_FP32(blocks[i].d);
        float *     lo = out + i * QK4_0;
        float *     hi = lo + QK4_0 / 2;
        for (int j = 0; j < QK4_0 / 2; ++j) {
            lo[j] = d * (float) ((int) (qs[j] & 0x0F) - 8);
        }
        for (int j = 0; j < QK4_0 / 2; ++j) {
            hi[j] = d * (float) ((int) (qs[j] >> 4) - 8);
        }
    }
}

minicache_read_row_t minicache_row_reader(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return read_f32;
        case GGML_TYPE_F16:
            return read_f16;
        case GGML_TYPE_BF16:
            return read_bf16;
        case GGML_TYPE_Q8_0:
            return read_q8_0;
        case GGML_TYPE_Q4_0:
            return read_q4_0;
        default:
            return ggml_get_type_traits(type)->to_float;
    }
}
