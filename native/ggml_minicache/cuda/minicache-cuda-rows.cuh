#pragma once

// Reads rows of a cache or pool into tiles of f16 in shared memory. The bytes of ggml's types are read by the functions of
// ggml-cuda's own attention, those of code rows by minicache-code-unit.h.

#include "fattn-common.cuh"
#include "minicache-cuda-launch.cuh"
#include "minicache-code-unit.h"

// The rows of one tensor [d, head, i, stream], with strides in bytes.
struct minicache_cuda_rows {
    const char * data;
    int64_t      head;
    int64_t      i;
    int64_t      stream;
    int32_t      type;

    __device__ const char * row(int64_t s, int64_t h, int64_t at) const { return data + s * stream + h * head + at * i; }
};

static inline minicache_cuda_rows minicache_cuda_rows_of(const ggml_tensor * x) {
    return x ? minicache_cuda_rows{ (const char *) x->data, (int64_t) x->nb[1], (int64_t) x->nb[2], (int64_t) x->nb[3],
        x->type } :
               minicache_cuda_rows{};
}

// Reads four numbers of a row from number i on, a multiple of 4.
static __device__ __forceinline__ void minicache_read_4(const char * row, int32_t type, int i, half2 * out) {
    switch (type) {
        case GGML_TYPE_F16:
            dequantize_V_f16<half, 4>(row, out, i);
            break;
        case GGML_TYPE_Q8_0:
            dequantize_V_q8_0<half, 4>(row, out, i);
            break;
        case GGML_TYPE_Q4_0:
            dequantize_V_q4_0<half, 4>(row, out, i);
            break;
        case GGML_TYPE_Q4_1:
            dequantize_V_q4_1<half, 4>(row, out, i);
            break;
        case GGML_TYPE_Q5_0:
            dequantize_V_q5_0<half, 4>(row, out, i);
            break;
        case GGML_TYPE_Q5_1:
            dequantize_V_q5_1<half, 4>(row, out, i);
            break;
        case GGML_TYPE_BF16: {
            float2 x[2];
            dequantize_V_bf16<float, 4>(row, x, i);
            out[0] = __floats2half2_rn(x[0].x, x[0].y);
            out[1] = __floats2half2_rn(x[1].x, x[1].y);
        } break;
        case GGML_TYPE_IQ4_NL: {
            const block_iq4_nl * block = (const block_iq4_nl *) row + i / QK4_NL;

            const float d     = __half2float(block->d);
            const int   first = i % QK4_NL;
            float       x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int q = block->qs[(first + j) % (QK4_NL / 2)] >> (first < QK4_NL / 2 ? 0 : 4) & 15;
                x[j]        = d * (float) kvalues_iq4nl[q];
            }
            out[0] = __floats2half2_rn(x[0], x[1]);
            out[1] = __floats2half2_rn(x[2], x[3]);
        } break;
    }
}

// One warp: reads the d numbers of a row to `out`, zeros if the row is null.
static __device__ __noinline__ void minicache_read_row(const char * row, int32_t type, int d, half * out) {
    for (int i = 4 * threadIdx.x; i < d; i += 4 * WARP_SIZE) {
        half2 x[2] = { __floats2half2_rn(0.0f, 0.0f), __floats2half2_rn(0.0f, 0.0f) };
        if (row) {
            minicache_read_4(row, type, i, x);
        }
        ((half2 *) (out + i))[0] = x[0];
        ((half2 *) (out + i))[1] = x[1];
    }
}

// One warp: the same for a row of float32.
static __device__ __forceinline__ void minicache_read_row_f32(const float * row, int d, half * out) {
    for (int i = 2 * threadIdx.x; i < d; i += 2 * WARP_SIZE) {
        ((half2 *) (out + i))[0] = __floats2half2_rn(row[i], row[i + 1]);
    }
}

// One warp: starts to copy the bytes of a row to shared memory. They are there once each thread has waited for its pipeline and
// the block for its threads. A row begins at an even address; if that is the middle of a word, the first two bytes copied
// belong to another row.
static __device__ __forceinline__ void minicache_stage_row(const char * row, int bytes, char * out) {
    if (((uintptr_t) row | (uintptr_t) out | (uintptr_t) bytes) % 16 == 0) {
        for (int i = 16 * threadIdx.x; i < bytes; i += 16 * WARP_SIZE) {
            __pipeline_memcpy_async(out + i, row + i, 16);
        }
        return;
    }
    const int shift = (uintptr_t) row & 2;
    for (int i = 4 * threadIdx.x; i < bytes + shift; i += 4 * WARP_SIZE) {
        __pipeline_memcpy_async(out + i, row - shift + i, 4);
    }
}

//
// code rows
//

// Reads the coefficients L - (2^w - 1)/2 of a unit from its staged row, to their places in out [16].
struct minicache_unit_reader {
    const uint16_t * upper;
    const uint16_t * lower;
    half2 *          out;

    template <int UPPER, int LOWER>
    __device__ __forceinline__ void operator()() const {
        uint32_t pairs[8];
        minicache_unit_pairs<UPPER, LOWER>(upper, lower, pairs);

        // 0x6400 is 1024 in f16, where the last bit is worth 1, so a level is added to it by setting its bits
        const half2 bias   = __floats2half2_rn(1024.0f, 1024.0f);
        const float half_f = 0.5f * (float) ((1 << (UPPER + LOWER)) - 1);
        const half2 centre = __floats2half2_rn(half_f, half_f);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const uint32_t bits = pairs[j] | 0x64006400u;
            half2          x;
            memcpy(&x, &bits, sizeof(x));
            out[j] = __hsub2(__hsub2(x, bias), centre);
        }
    }
};

static __device__ __forceinline__ void minicache_read_unit(const char * staged, minicache_code_unit unit, half2 * out) {
    minicache_unit_dispatch(unit.width,
        minicache_unit_reader{ (const uint16_t *) (staged + unit.upper), (const uint16_t *) (staged + unit.lower), out });
}

// All warps of a block: read a tile of staged code rows to f16. The lanes of a warp take the same unit of many rows.
//   rows   [n] where each row begins in the staged memory, -1 for zeros
//   units  [n_unit]
//   out    [n][ld], rows aligned to 16 bytes
static __device__ __noinline__ void minicache_read_units(
    const char * staged, const int32_t * rows, int n, const minicache_code_unit * units, int n_unit, half * out, int ld) {
    for (int u = threadIdx.y; u < n_unit; u += blockDim.y) {
        for (int c = threadIdx.x; c < n; c += WARP_SIZE) {
            half2 x[MINICACHE_CODE_UNIT / 2];
            if (rows[c] >= 0) {
                minicache_read_unit(staged + rows[c], units[u], x);
            } else {
#pragma unroll
                for (int j = 0; j < MINICACHE_CODE_UNIT / 2; ++j) {
                    x[j] = __floats2half2_rn(0.0f, 0.0f);
                }
            }
            int4 words[2];
            memcpy(words, x, sizeof(words));
            int4 * to = (int4 *) (out + c * ld + u * MINICACHE_CODE_UNIT);
            to[0]     = words[0];
            to[1]     = words[1];
        }
    }
}
