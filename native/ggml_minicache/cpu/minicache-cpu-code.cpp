#include "minicache-cpu-code.h"

#include "minicache-cpu-code-segments.h"
#include "minicache-cpu-simd.h"

#include <cstring>

// The parts of a codec, and the bytes of code rows: levels to rows, and rows to float32.

static minicache_code_head code_head(const minicache_code_shape & shape, const void * codec, bool is_v, int64_t head_kv) {
    const minicache_codec_offsets o    = minicache_codec_offsets_of(shape);
    const minicache_head_layout   own  = minicache_codec_head(shape, codec, is_v, (int) head_kv);
    const auto *                  base = (const char *) codec;

    minicache_code_head head;
    head.layout = own.layout;
    head.row    = own.row;
    head.d      = is_v ? shape.d_v : shape.d_k;
    head.r      = minicache_code_size(own.layout);
    head.mag    = (const float *) (base + o.mag) + (2 * head_kv + is_v) * 2 * head.n_layer();
    head.weight = (const float *) (base + (is_v ? o.weight_v : o.weight_k)) + head_kv * head.n();
    head.gain   = (const float *) (base + (is_v ? o.gain_v : o.gain_k)) + own.coef;
    head.dec    = (const ggml_fp16_t *) (base + (is_v ? o.dec_v : o.dec_k)) + head.n() * own.coef;
    return head;
}

minicache_code_head minicache_code_head_k(const minicache_code_shape & shape, const void * codec, int64_t head_kv) {
    return code_head(shape, codec, false, head_kv);
}

minicache_code_head minicache_code_head_v(const minicache_code_shape & shape, const void * codec, int64_t head_kv) {
    return code_head(shape, codec, true, head_kv);
}

//
// the bytes of a row
//

// Packs P bits of each of eight bytes side by side: joins pairs of bytes, then pairs of pairs, then those.
template <int P>
static inline uint64_t join_bits(uint64_t x) {
    static const uint64_t ONE = (1u << P) - 1;  // the bits of one level, of two, of four
    static const uint64_t TWO = (1u << 2 * P) - 1;
    static const uint64_t ALL = (1ull << 4 * P) - 1;

    x &= ONE * 0x0101010101010101ull;
    x = (x | x >> (8 - P)) & TWO * 0x0001000100010001ull;
    x = (x | x >> 2 * (8 - P)) & ALL * 0x0000000100000001ull;
    return x | x >> 4 * (8 - P);
}

// Writes a plane of P bits, which are the bits of n levels from `shift` on.
template <int P>
static inline uint8_t * write_plane(const uint8_t * levels, int n, int shift, uint8_t * plane) {
    for (int i = 0; i < n; i += 8, plane += P) {
        uint64_t x;
        memcpy(&x, levels + i, sizeof(x));
        x = join_bits<P>(x >> shift);  // bits that come in from the next byte are above the P bits
        memcpy(plane, &x, P);
    }
    return plane;
}

template <int UPPER, int LOWER>
static inline void write_segment(int n_unit, const uint8_t *& levels, uint8_t *& plane) {
    const int n = MINICACHE_CODE_UNIT * n_unit;

    plane = write_plane<UPPER>(levels, n, LOWER, plane);
    if constexpr (LOWER > 0) {
        plane = write_plane<LOWER>(levels, n, 0, plane);
    }
    levels += n;
}

void minicache_code_write(const minicache_code_layout & layout, const uint8_t * levels, uint8_t * row) {
    uint8_t * plane = row + minicache_code_mag_bytes(layout);

    write_segment<8, 0>(layout.n_unit[0], levels, plane);
    write_segment<4, 2>(layout.n_unit[1], levels, plane);
    write_segment<4, 1>(layout.n_unit[2], levels, plane);
    write_segment<4, 0>(layout.n_unit[3], levels, plane);
    write_segment<2, 1>(layout.n_unit[4], levels, plane);
    write_segment<2, 0>(layout.n_unit[5], levels, plane);
    write_segment<1, 0>(layout.n_unit[6], levels, plane);
}

// code_bits<P>: P bits of each of MINICACHE_LANES levels, the g-th so many of a unit of 16. A unit has 2*P bytes in a plane of
// P bits.

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

// Reads one segment of all rows, so that what does not depend on the row is set up once: n_unit units of UPPER + LOWER bits, from
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

    for_segments(
        layout, [&](auto planes, int n_unit) { read_segment<planes.upper, planes.lower>(n_unit, rows, n, offset, out, stride); });
}
