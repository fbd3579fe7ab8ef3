#include "minicache-cpu-code.h"

#include "minicache-code-unit.h"
#include "minicache-cpu-kernels.h"
#include "minicache-cpu-simd.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

static minicache_code_head code_head(const minicache_code_layout & layout, int64_t d, int64_t head_kv, const void * codec,
    int64_t mag, int64_t weight, int64_t gain, int64_t dec) {
    const auto *  base = (const char *) codec;
    const int64_t r    = minicache_code_size(layout);

    minicache_code_head head;
    head.layout = layout;
    head.d      = d;
    head.r      = r;
    head.mag    = (const float *) (base + mag) + head_kv * 4 * layout.n_layer;
    head.weight = (const float *) (base + weight) + head_kv * head.n();
    head.gain   = (const float *) (base + gain) + head_kv * r;
    head.dec    = (const ggml_fp16_t *) (base + dec) + head_kv * head.n() * r;
    return head;
}

minicache_code_head minicache_code_head_k(const minicache_code_shape & shape, const void * codec, int64_t head_kv) {
    const minicache_codec_offsets o = minicache_codec_offsets_of(shape);
    return code_head(shape.layout_k, shape.d_k, head_kv, codec, o.mag, o.weight_k, o.gain_k, o.dec_k);
}

minicache_code_head minicache_code_head_v(const minicache_code_shape & shape, const void * codec, int64_t head_kv) {
    const minicache_codec_offsets o = minicache_codec_offsets_of(shape);

    minicache_code_head head = code_head(shape.layout_v, shape.d_v, head_kv, codec, o.mag, o.weight_v, o.gain_v, o.dec_v);
    head.mag += 2 * head.n_layer();  // behind K's
    return head;
}

//
// the bytes of a row
//

void minicache_code_write(const minicache_code_layout & layout, const uint8_t * levels, uint8_t * row) {
    const int mag_bytes = minicache_code_mag_bytes(layout);

    memset(row + mag_bytes, 0, minicache_code_bytes(layout) - mag_bytes);

    uint8_t * plane = row + mag_bytes;
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        const int n     = MINICACHE_CODE_UNIT * layout.n_unit[i];
        const int width = minicache_code_width(i);
        const int upper = minicache_code_upper(width);
        const int lower = width - upper;

        for (int j = 0; j < n; ++j) {
            minicache_code_put(plane, upper, j, levels[j] >> lower);
        }
        plane += n / 8 * upper;
        for (int j = 0; lower > 0 && j < n; ++j) {
            minicache_code_put(plane, lower, j, levels[j] & ((1 << lower) - 1));
        }
        plane += n / 8 * lower;
        levels += n;
    }
}

// code_bits<P>: P bits of each of MINICACHE_LANES levels, from the g-th group of so many of a unit of 16; a plane of P bits
// has 2*P bytes a unit

template <int N>
static inline uint32_t load_bytes(const uint8_t * p) {
    static_assert(N <= 4);
    uint32_t x = 0;
    memcpy(&x, p, N);
    return x;
}

#if MINICACHE_LANES == 16
typedef __m512i code_vec;

template <int P>
static inline code_vec code_bits(const uint8_t * unit, int) {
    if constexpr (P == 8) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) unit));
    } else {
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

        __m512i word;
        __m512i shift;
        if constexpr (P == 4) {
            word = _mm512_permutexvar_epi32(
                _mm512_srli_epi32(lane, 3), _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *) unit)));
            shift = _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(7)), 2);
        } else {
            word  = _mm512_set1_epi32((int) load_bytes<2 * P>(unit));
            shift = P == 2 ? _mm512_slli_epi32(lane, 1) : lane;
        }
        return _mm512_and_si512(_mm512_srlv_epi32(word, shift), _mm512_set1_epi32((1 << P) - 1));
    }
}

template <int P>
static inline code_vec code_join(code_vec upper, code_vec lower) {
    return _mm512_or_si512(_mm512_slli_epi32(upper, P), lower);
}

static inline minicache_vec code_centred(code_vec level, minicache_vec half) {
    return _mm512_sub_ps(_mm512_cvtepi32_ps(level), half);
}
#elif MINICACHE_LANES == 8
typedef __m256i code_vec;

template <int P>
static inline code_vec code_bits(const uint8_t * unit, int g) {
    if constexpr (P == 8) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) (unit + 8 * g)));
    } else {
        const __m256i shift = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(P));
        const __m256i word  = _mm256_set1_epi32((int) load_bytes<P>(unit + P * g));
        return _mm256_and_si256(_mm256_srlv_epi32(word, shift), _mm256_set1_epi32((1 << P) - 1));
    }
}

template <int P>
static inline code_vec code_join(code_vec upper, code_vec lower) {
    return _mm256_or_si256(_mm256_slli_epi32(upper, P), lower);
}

static inline minicache_vec code_centred(code_vec level, minicache_vec half) {
    return _mm256_sub_ps(_mm256_cvtepi32_ps(level), half);
}
#elif MINICACHE_LANES == 4
typedef uint32x4_t code_vec;

template <int P>
static inline code_vec code_bits(const uint8_t * unit, int g) {
    static const int32_t shifts[4] = { 0, -P, -2 * P, -3 * P };

    uint32_t word;
    if constexpr (P == 1) {
        word = (uint32_t) unit[g / 2] >> (g % 2 * 4);
    } else {
        word = load_bytes<P / 2>(unit + P / 2 * g);
    }
    return vandq_u32(vshlq_u32(vdupq_n_u32(word), vld1q_s32(shifts)), vdupq_n_u32((1u << P) - 1));
}

template <int P>
static inline code_vec code_join(code_vec upper, code_vec lower) {
    return vorrq_u32(vshlq_n_u32(upper, P), lower);
}

static inline minicache_vec code_centred(code_vec level, minicache_vec half) { return vsubq_f32(vcvtq_f32_u32(level), half); }
#else
typedef int code_vec;

template <int P>
static inline code_vec code_bits(const uint8_t * unit, int i) {
    return minicache_code_get(unit, P, i);
}

template <int P>
static inline code_vec code_join(code_vec upper, code_vec lower) {
    return upper << P | lower;
}

static inline minicache_vec code_centred(code_vec level, minicache_vec half) { return (float) level - half; }
#endif

// One segment of all rows, so that what does not depend on the row is set up once: n_unit units of UPPER + LOWER bits, from
// byte `offset` on.
template <int UPPER, int LOWER>
static inline void read_segment(int n_unit, const uint8_t * const * rows, int n, int64_t & offset, float *& out, int64_t stride) {
    const minicache_vec half = vec_set(0.5f * (float) ((1 << (UPPER + LOWER)) - 1));

    for (int i = 0; n_unit > 0 && i < n; ++i) {
        const uint8_t * upper = rows[i] + offset;
        const uint8_t * lower = upper + 2 * UPPER * n_unit;
        float *         x     = out + i * stride;

        for (int u = 0; u < n_unit; ++u) {
            for (int g = 0; g < MINICACHE_CODE_UNIT / MINICACHE_LANES; ++g) {
                code_vec level = code_bits<UPPER>(upper + 2 * UPPER * u, g);
                if constexpr (LOWER > 0) {
                    level = code_join<LOWER>(level, code_bits<LOWER>(lower + 2 * LOWER * u, g));
                }
                vec_store(x + MINICACHE_CODE_UNIT * u + MINICACHE_LANES * g, code_centred(level, half));
            }
        }
    }
    offset += 2 * (UPPER + LOWER) * n_unit;
    out += MINICACHE_CODE_UNIT * n_unit;
}

void minicache_code_read(const minicache_code_layout & layout, const uint8_t * const * rows, int n, float * out, int64_t stride) {
    int64_t offset = minicache_code_mag_bytes(layout);

    read_segment<8, 0>(layout.n_unit[0], rows, n, offset, out, stride);
    read_segment<4, 2>(layout.n_unit[1], rows, n, offset, out, stride);
    read_segment<4, 1>(layout.n_unit[2], rows, n, offset, out, stride);
    read_segment<4, 0>(layout.n_unit[3], rows, n, offset, out, stride);
    read_segment<2, 1>(layout.n_unit[4], rows, n, offset, out, stride);
    read_segment<2, 0>(layout.n_unit[5], rows, n, offset, out, stride);
    read_segment<1, 0>(layout.n_unit[6], rows, n, offset, out, stride);
}

//
// levels
//

// level_bytes<N>: the levels of N coefficients, a byte each
#if MINICACHE_LANES == 16 && defined(__AVX512BW__) && defined(__AVX512VL__)
static const int MAX_LEVELS = 64;  // at a time

template <int N>
using level_bytes = std::conditional_t<N == 64, __m512i, std::conditional_t<N == 32, __m256i, __m128i>>;

// N times P bits, in the low bytes; no other byte is touched
template <int N, int P>
static inline auto plane_part(const uint8_t * plane) {
    if constexpr (N * P == 512) {
        return _mm512_loadu_si512(plane);
    } else if constexpr (N * P == 256) {
        return _mm256_loadu_si256((const __m256i *) plane);
    } else if constexpr (N * P == 128) {
        return _mm_loadu_si128((const __m128i *) plane);
    } else {
        uint64_t x = 0;
        memcpy(&x, plane, N * P / 8);
        return _mm_cvtsi64_si128((long long) x);
    }
}

// words of 8*B bits, of their lowest bytes
template <int N, int B, typename T>
static inline level_bytes<N> wide_bytes(T x) {
    if constexpr (N == 64) {
        if constexpr (B == 2) {
            return _mm512_cvtepu8_epi16(x);
        } else {
            return _mm512_cvtepu8_epi32(x);
        }
    } else if constexpr (N == 32) {
        if constexpr (B == 2) {
            return _mm256_cvtepu8_epi16(x);
        } else {
            return _mm256_cvtepu8_epi32(x);
        }
    } else {
        if constexpr (B == 2) {
            return _mm_cvtepu8_epi16(x);
        } else {
            return _mm_cvtepu8_epi32(x);
        }
    }
}

// (x | x << SHIFT), of words of 32 bits
template <int SHIFT>
static inline __m512i or_shifted(__m512i x, __m512i y) {
    return _mm512_or_si512(x, _mm512_slli_epi32(y, SHIFT));
}

template <int SHIFT>
static inline __m256i or_shifted(__m256i x, __m256i y) {
    return _mm256_or_si256(x, _mm256_slli_epi32(y, SHIFT));
}

template <int SHIFT>
static inline __m128i or_shifted(__m128i x, __m128i y) {
    return _mm_or_si128(x, _mm_slli_epi32(y, SHIFT));
}

static inline __m512i and_bytes(__m512i x, char mask) { return _mm512_and_si512(x, _mm512_set1_epi8(mask)); }

static inline __m256i and_bytes(__m256i x, char mask) { return _mm256_and_si256(x, _mm256_set1_epi8(mask)); }

static inline __m128i and_bytes(__m128i x, char mask) { return _mm_and_si128(x, _mm_set1_epi8(mask)); }

template <int N>
static inline level_bytes<N> bits_to_bytes(__m128i x) {
    const auto bits = (uint64_t) _mm_cvtsi128_si64(x);
    if constexpr (N == 64) {
        return _mm512_maskz_set1_epi8((__mmask64) bits, 1);
    } else if constexpr (N == 32) {
        return _mm256_maskz_set1_epi8((__mmask32) bits, 1);
    } else {
        return _mm_maskz_set1_epi8((__mmask16) bits, 1);
    }
}

template <int N, int P>
static inline level_bytes<N> plane_bytes(const uint8_t * plane) {
    const auto x = plane_part<N, P>(plane);
    if constexpr (P == 8) {
        return x;
    } else if constexpr (P == 4) {
        const auto y = wide_bytes<N, 2>(x);
        return and_bytes(or_shifted<4>(y, y), 0x0F);
    } else if constexpr (P == 2) {
        const auto y = wide_bytes<N, 4>(x);
        const auto z = or_shifted<12>(y, y);
        return and_bytes(or_shifted<6>(z, z), 0x03);
    } else {
        return bits_to_bytes<N>(x);
    }
}

// a shift of words carries nothing from byte to byte: levels of two planes have up to 6 bits
template <int N, int LOWER>
static inline level_bytes<N> join_bytes(level_bytes<N> upper, level_bytes<N> lower) {
    return or_shifted<LOWER>(lower, upper);
}
#else
static const int MAX_LEVELS = MINICACHE_CODE_UNIT;

template <int N>
struct level_bytes {
    uint8_t x[N];
};

template <int N, int P>
static inline level_bytes<N> plane_bytes(const uint8_t * plane) {
    uint8_t bytes[N * P / 8];
    memcpy(bytes, plane, sizeof(bytes));

    level_bytes<N> y;
    for (int i = 0; i < N; ++i) {
        y.x[i] = bytes[i * P / 8] >> (i * P % 8) & ((1 << P) - 1);
    }
    return y;
}

template <int N, int LOWER>
static inline level_bytes<N> join_bytes(level_bytes<N> upper, level_bytes<N> lower) {
    for (int i = 0; i < N; ++i) {
        lower.x[i] = (uint8_t) (upper.x[i] << LOWER | lower.x[i]);
    }
    return lower;
}
#endif

// N coefficients of all rows, from byte `upper` and `lower` of each on
template <int N, int UPPER, int LOWER>
static inline void levels_at(const minicache_rows & rows, int64_t upper, int64_t lower, uint8_t * out, int64_t stride) {
    for (int c = 0; c < rows.n; ++c) {
        const uint8_t * row = (const uint8_t *) rows.at[c];
        minicache_fetch_ahead(row + upper, rows.ahead, N * UPPER / 8);

        auto x = plane_bytes<N, UPPER>(row + upper);
        if constexpr (LOWER > 0) {
            x = join_bytes<N, LOWER>(x, plane_bytes<N, LOWER>(row + lower));
        }
        memcpy(out + c * stride, &x, sizeof(x));
    }
}

// One segment of all rows, as many coefficients at a time as there can be: what does not depend on the row is set up once.
template <int UPPER, int LOWER>
static inline void segment_levels(int n_unit, const minicache_rows & rows, int64_t & offset, uint8_t *& out, int64_t stride) {
    const int     n     = MINICACHE_CODE_UNIT * n_unit;
    const int64_t upper = offset;
    const int64_t lower = offset + n * UPPER / 8;

    int        i    = 0;
    const auto take = [&](auto N) {
        for (; i + N <= n; i += N) {
            levels_at<N, UPPER, LOWER>(rows, upper + i * UPPER / 8, lower + i * LOWER / 8, out + i, stride);
        }
    };
    if constexpr (MAX_LEVELS > MINICACHE_CODE_UNIT) {
        take(std::integral_constant<int, 64>());
        take(std::integral_constant<int, 32>());
    }
    take(std::integral_constant<int, MINICACHE_CODE_UNIT>());

    offset += n * (UPPER + LOWER) / 8;
    out += n;
}

#if defined(__AVX512VBMI__)
// PARTS of them, which start at parts[0]; LONG: rows of more than 64 bytes
template <bool LONG, int PARTS, typename T>
static inline void levels_parts(const T * parts, const minicache_rows & rows, int n_byte, uint8_t * out, int64_t stride) {
    const __mmask64 first = n_byte < 64 ? (1ull << n_byte) - 1 : ~0ull;
    const __mmask64 last  = LONG && n_byte < 128 ? (1ull << (n_byte - 64)) - 1 : ~0ull;

    __m512i byte[PARTS];
    __m512i upper[PARTS];
    __m512i lower[PARTS];
    __m512i is_upper[PARTS];
    __m512i is_level[PARTS];
    for (int i = 0; i < PARTS; ++i) {
        byte[i]     = _mm512_loadu_si512(parts[i].byte);
        upper[i]    = _mm512_loadu_si512(parts[i].upper);
        lower[i]    = _mm512_loadu_si512(parts[i].lower);
        is_upper[i] = _mm512_loadu_si512(parts[i].is_upper);
        is_level[i] = _mm512_loadu_si512(parts[i].is_level);
    }
    for (int c = 0; c < rows.n; ++c) {
        const uint8_t * row = (const uint8_t *) rows.at[c];
        minicache_fetch_ahead(row, rows.ahead, n_byte);

        const __m512i x = _mm512_maskz_loadu_epi8(first, row);
        const __m512i y = LONG ? _mm512_maskz_loadu_epi8(last, row + 64) : x;
        for (int i = 0; i < PARTS; ++i) {
            const __m512i z =
                LONG ? _mm512_permutex2var_epi8(x, byte[i], y) : _mm512_permutexvar_epi8(byte[i], x);
            // is_upper ? upper bits : lower bits
            const __m512i level = _mm512_ternarylogic_epi32(
                is_upper[i], _mm512_multishift_epi64_epi8(upper[i], z), _mm512_multishift_epi64_epi8(lower[i], z), 0xCA);
            _mm512_storeu_si512(out + c * stride + 64 * i, _mm512_and_si512(level, is_level[i]));
        }
    }
}
#endif

minicache_code_levels::minicache_code_levels(const minicache_code_layout & layout) :
    layout(layout), n_byte(minicache_code_bytes(layout)) {
#if defined(__AVX512VBMI__)
    const int n_level = minicache_code_size(layout);
    if (n_byte > 128 || n_level > 64 * MAX_PARTS) {
        return;
    }
    n_part = (n_level + 63) / 64;
    memset(parts, 0, n_part * sizeof(part));
    for (int i = 0; i < n_level; ++i) {
        const minicache_code_unit unit    = minicache_code_unit_at(layout, i / MINICACHE_CODE_UNIT);
        const int                 n_upper = minicache_code_upper(unit.width);
        const int                 n_lower = unit.width - n_upper;
        const int                 half    = i % MINICACHE_CODE_UNIT / 8;  // of the unit: a word
        const int                 at      = i % 8;

        part & x        = parts[i / 64];
        const int j     = i % 64;
        x.upper[j]      = (uint8_t) ((at * n_upper - n_lower) & 63);
        x.lower[j]      = (uint8_t) (8 * n_upper + at * n_lower);
        x.is_upper[j]   = (uint8_t) (((1 << n_upper) - 1) << n_lower);
        x.is_level[j]   = (uint8_t) ((1 << unit.width) - 1);
        // byte `at` of the word: n_upper bytes of the upper plane, then those of the lower one
        x.byte[j] = (uint8_t) (at < n_upper             ? unit.upper + half * n_upper + at :
                               at < n_upper + n_lower ? unit.lower + half * n_lower + at - n_upper :
                                                          0);
    }
#endif
}

void minicache_code_levels::read(const minicache_rows & rows, uint8_t * out, int64_t stride) const {
#if defined(__AVX512VBMI__)
    // as many parts at a time as there are registers for
    for_rows<4>(n_part, [&](int64_t i, auto PARTS) {
        if (n_byte > 64) {
            levels_parts<true, PARTS()>(parts + i, rows, n_byte, out + 64 * i, stride);
        } else {
            levels_parts<false, PARTS()>(parts + i, rows, n_byte, out + 64 * i, stride);
        }
    });
    if (n_part > 0) {
        return;
    }
#endif
    int64_t offset = minicache_code_mag_bytes(layout);

    segment_levels<8, 0>(layout.n_unit[0], rows, offset, out, stride);
    segment_levels<4, 2>(layout.n_unit[1], rows, offset, out, stride);
    segment_levels<4, 1>(layout.n_unit[2], rows, offset, out, stride);
    segment_levels<4, 0>(layout.n_unit[3], rows, offset, out, stride);
    segment_levels<2, 1>(layout.n_unit[4], rows, offset, out, stride);
    segment_levels<2, 0>(layout.n_unit[5], rows, offset, out, stride);
    segment_levels<1, 0>(layout.n_unit[6], rows, offset, out, stride);
}

void minicache_code_zeros(const minicache_code_layout & layout, float * out) {
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        const float half = 0.5f * (float) ((1 << minicache_code_width(i)) - 1);
        for (int c = 0; c < MINICACHE_CODE_UNIT * layout.n_unit[i]; ++c) {
            *out++ = half;
        }
    }
}
