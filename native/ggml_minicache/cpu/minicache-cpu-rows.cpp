#include "minicache-cpu-rows.h"

#include "ggml-cpu.h"
#include "minicache-cpu-simd.h"
#include "quants.h"
#include "simd-mappings.h"

#include <algorithm>
#include <cstring>

static void read_f32(const void * row, float * out, int64_t n) { memcpy(out, row, n * sizeof(float)); }

static void read_f16(const void * row, float * out, int64_t n) { ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) row, out, n); }

static void read_bf16(const void * row, float * out, int64_t n) { ggml_cpu_bf16_to_fp32((const ggml_bf16_t *) row, out, n); }

// The two formats that are most used for long contexts are read here and not by ggml's converters, which are in ggml-base and
// so built for the lowest common instruction set.

// The quants are copied out first: bytes may alias the output, and that would keep the compiler from vectorising.

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

//
// levels
//

// Unpacks the nibbles of a block: its first half holds the lower ones, its second half the upper ones. Compilers handle bytes
// badly, so without vectors it takes eight at a time.
static inline void unpack_nibbles(const uint8_t * bytes, uint8_t * out) {
#if defined(__AVX2__)
    const __m128i x = _mm_loadu_si128((const __m128i *) bytes);
    const __m256i y = _mm256_inserti128_si256(_mm256_castsi128_si256(x), _mm_srli_epi16(x, 4), 1);
    _mm256_storeu_si256((__m256i *) out, _mm256_and_si256(y, _mm256_set1_epi8(0x0F)));
#elif defined(__ARM_NEON) && defined(__aarch64__)
    const uint8x16_t x = vld1q_u8(bytes);
    vst1q_u8(out, vandq_u8(x, vdupq_n_u8(0x0F)));
    vst1q_u8(out + 16, vshrq_n_u8(x, 4));
#else
    static const uint64_t MASK = 0x0F0F0F0F0F0F0F0Full;

    uint64_t x[2];
    memcpy(x, bytes, sizeof(x));
    const uint64_t y[4] = { x[0] & MASK, x[1] & MASK, x[0] >> 4 & MASK, x[1] >> 4 & MASK };
    memcpy(out, y, sizeof(y));
#endif
}

// adds the fifth bits to nibbles
static inline void add_fifth_bits(const uint8_t * bytes, uint8_t * out) {
    uint32_t bits;
    memcpy(&bits, bytes, sizeof(bits));
    for (int j = 0; j < MINICACHE_LEVEL_SPAN; ++j) {
        out[j] |= (uint8_t) ((bits >> j & 1) << 4);
    }
}

struct levels_q8_0 {
    typedef block_q8_0 block;

    static constexpr float zero    = 128.0f;
    static constexpr bool  has_min = false;

    static void unpack(const block & b, uint8_t * out) {
#if defined(__AVX2__)
        const __m256i x = _mm256_loadu_si256((const __m256i *) b.qs);
        _mm256_storeu_si256((__m256i *) out, _mm256_xor_si256(x, _mm256_set1_epi8(-128)));
#else
        uint64_t x[QK8_0 / 8];
        memcpy(x, b.qs, sizeof(x));
        for (uint64_t & y : x) {
            y ^= 0x8080808080808080ull;
        }
        memcpy(out, x, sizeof(x));
#endif
    }
};

struct levels_q4_0 {
    typedef block_q4_0 block;

    static constexpr float zero    = 8.0f;
    static constexpr bool  has_min = false;

    static void unpack(const block & b, uint8_t * out) { unpack_nibbles(b.qs, out); }
};

struct levels_q5_0 {
    typedef block_q5_0 block;

    static constexpr float zero    = 16.0f;
    static constexpr bool  has_min = false;

    static void unpack(const block & b, uint8_t * out) {
        unpack_nibbles(b.qs, out);
        add_fifth_bits(b.qh, out);
    }
};

struct levels_q4_1 {
    typedef block_q4_1 block;

    static constexpr float zero    = 0.0f;
    static constexpr bool  has_min = true;

    static void unpack(const block & b, uint8_t * out) { unpack_nibbles(b.qs, out); }
};

struct levels_q5_1 {
    typedef block_q5_1 block;

    static constexpr float zero    = 0.0f;
    static constexpr bool  has_min = true;

    static void unpack(const block & b, uint8_t * out) {
        unpack_nibbles(b.qs, out);
        add_fifth_bits(b.qh, out);
    }
};

// the 16 values of iq4_nl, as levels
struct iq4_nl_table {
    uint8_t level[16];

    iq4_nl_table() {
        block_iq4_nl b;
        float        x[QK4_NL];
        b.d = GGML_CPU_FP32_TO_FP16(1.0f);
        for (int j = 0; j < QK4_NL / 2; ++j) {
            b.qs[j] = (uint8_t) j;
        }
        ggml_get_type_traits(GGML_TYPE_IQ4_NL)->to_float(&b, x, QK4_NL);
        for (int j = 0; j < 16; ++j) {
            level[j] = (uint8_t) (x[j] + 128.0f);
        }
    }
};

struct levels_iq4_nl {
    typedef block_iq4_nl block;

    static constexpr float zero    = 128.0f;
    static constexpr bool  has_min = false;

    static void unpack(const block & b, uint8_t * out) {
        static const iq4_nl_table table;
        unpack_nibbles(b.qs, out);
#if defined(__SSSE3__)
        const __m128i levels = _mm_loadu_si128((const __m128i *) table.level);
        for (int j = 0; j < QK4_NL; j += 16) {
            auto * x = (__m128i *) (out + j);
            _mm_storeu_si128(x, _mm_shuffle_epi8(levels, _mm_loadu_si128(x)));
        }
#elif defined(__ARM_NEON) && defined(__aarch64__)
        for (int j = 0; j < QK4_NL; j += 16) {
            vst1q_u8(out + j, vqtbl1q_u8(vld1q_u8(table.level), vld1q_u8(out + j)));
        }
#else
        for (int j = 0; j < QK4_NL; ++j) {
            out[j] = table.level[out[j]];
        }
#endif
    }
};

template <typename F>
static void read_levels(const minicache_rows & rows, int64_t d, const minicache_level_rows & out) {
    const int64_t n_span = d / MINICACHE_LEVEL_SPAN;
    for (int c = 0; c < rows.n; ++c) {
        const auto *  b      = (const typename F::block *) rows.at[c];
        uint8_t *     levels = out.levels + c * out.ld;
        ggml_fp16_t * scale  = out.scale + c;
        ggml_fp16_t * min    = out.min + c;
        minicache_fetch_ahead(b, rows.ahead, n_span * (int64_t) sizeof(*b));
        for (int64_t g = 0; g < n_span; ++g) {
            F::unpack(b[g], levels + g * MINICACHE_LEVEL_SPAN);
            scale[g * MINICACHE_LEVEL_BLOCK] = b[g].d;
            if constexpr (F::has_min) {
                min[g * MINICACHE_LEVEL_BLOCK] = b[g].m;
            }
        }
    }
    for (int64_t g = 0; g < n_span; ++g) {
        for (int64_t i = g * MINICACHE_LEVEL_BLOCK + rows.n; i < (g + 1) * MINICACHE_LEVEL_BLOCK; ++i) {
            out.scale[i] = 0;
            if constexpr (F::has_min) {
                out.min[i] = 0;
            }
        }
    }
}

template <typename F>
static minicache_level_format format_of() {
    return { read_levels<F>, F::zero, F::has_min };
}

minicache_level_format minicache_levels_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q8_0:
            return format_of<levels_q8_0>();
        case GGML_TYPE_Q4_0:
            return format_of<levels_q4_0>();
        case GGML_TYPE_Q4_1:
            return format_of<levels_q4_1>();
        case GGML_TYPE_Q5_0:
            return format_of<levels_q5_0>();
        case GGML_TYPE_Q5_1:
            return format_of<levels_q5_1>();
        case GGML_TYPE_IQ4_NL:
            return format_of<levels_iq4_nl>();
        default:
            return { nullptr, 0.0f, false };
    }
}
