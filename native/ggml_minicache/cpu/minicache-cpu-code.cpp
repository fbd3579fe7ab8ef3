#include "minicache-cpu-code.h"

#include "minicache-code-unit.h"
#include "minicache-cpu-kernels.h"
#include "minicache-cpu-simd.h"

#include <algorithm>
#include <cstring>

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

// P bits of each of eight bytes, side by side: pairs are joined, then pairs of pairs, then those
template <int P>
static inline uint64_t join_bits(uint64_t x) {
    static const uint64_t ONE = (1u << P) - 1;  // bits of a level, then of two, of four
    static const uint64_t TWO = (1u << 2 * P) - 1;
    static const uint64_t ALL = (1ull << 4 * P) - 1;

    x &= ONE * 0x0101010101010101ull;
    x = (x | x >> (8 - P)) & TWO * 0x0001000100010001ull;
    x = (x | x >> 2 * (8 - P)) & ALL * 0x0000000100000001ull;
    return x | x >> 4 * (8 - P);
}

// the bits of n levels from `shift` on, to a plane of P bits
template <int P>
static inline uint8_t * write_plane(const uint8_t * levels, int n, int shift, uint8_t * plane) {
    for (int i = 0; i < n; i += 8, plane += P) {
        uint64_t x;
        memcpy(&x, levels + i, sizeof(x));
        x = join_bits<P>(x >> shift);  // what comes in from the next byte is above the P bits
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

// a segment's planes, as a type
template <int UPPER, int LOWER>
struct segment_planes {
    static constexpr int upper = UPPER;
    static constexpr int lower = LOWER;
};

// fn(segment_planes, number of units) for each segment, in their order
template <typename F>
static inline void for_segments(const minicache_code_layout & layout, const F & fn) {
    fn(segment_planes<8, 0>(), layout.n_unit[0]);
    fn(segment_planes<4, 2>(), layout.n_unit[1]);
    fn(segment_planes<4, 1>(), layout.n_unit[2]);
    fn(segment_planes<4, 0>(), layout.n_unit[3]);
    fn(segment_planes<2, 1>(), layout.n_unit[4]);
    fn(segment_planes<2, 0>(), layout.n_unit[5]);
    fn(segment_planes<1, 0>(), layout.n_unit[6]);
}

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

    for_segments(
        layout, [&](auto planes, int n_unit) { read_segment<planes.upper, planes.lower>(n_unit, rows, n, offset, out, stride); });
}

//
// levels
//

#if MINICACHE_LANES == 16 && defined(__AVX512BW__)
// coefficients that are read at a time, and what of a plane that is
static const int LEVELS_AT_ONCE = 64;

typedef __mmask64 plane_part;

static inline plane_part first_bytes(int n_coef, int p) { return n_coef * p == 512 ? ~0ull : (1ull << n_coef * p / 8) - 1; }

// the levels of a plane of P bits, a byte each; no byte beyond the part is touched
template <int P>
static inline __m512i plane_bytes(const uint8_t * plane, plane_part part) {
    const __m512i x = _mm512_maskz_loadu_epi8(part, plane);
    if constexpr (P == 8) {
        return x;
    } else if constexpr (P == 4) {
        const __m512i y = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(x));
        return _mm512_and_si512(_mm512_or_si512(y, _mm512_slli_epi16(y, 4)), _mm512_set1_epi8(0x0F));
    } else if constexpr (P == 2) {
        __m512i y = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(x));
        y         = _mm512_or_si512(y, _mm512_slli_epi32(y, 12));
        y         = _mm512_or_si512(y, _mm512_slli_epi32(y, 6));
        return _mm512_and_si512(y, _mm512_set1_epi8(0x03));
    } else {
        return _mm512_maskz_set1_epi8((__mmask64) _mm_cvtsi128_si64(_mm512_castsi512_si128(x)), 1);
    }
}

// a shift of words carries nothing from byte to byte: levels of two planes have up to 6 bits
template <int LOWER>
static inline __m512i join_bytes(__m512i upper, __m512i lower) {
    return _mm512_or_si512(_mm512_slli_epi32(upper, LOWER), lower);
}

static inline void store_bytes(uint8_t * out, int n, __m512i x) { _mm512_mask_storeu_epi8(out, first_bytes(n, 8), x); }
#elif defined(__AVX2__)
static const int LEVELS_AT_ONCE = MINICACHE_CODE_UNIT;

struct plane_part {};

static inline plane_part first_bytes(int, int) { return {}; }

template <int P>
static inline __m128i plane_bytes(const uint8_t * plane, plane_part) {
    if constexpr (P == 8) {
        return _mm_loadu_si128((const __m128i *) plane);
    } else {
        uint64_t bytes = 0;
        memcpy(&bytes, plane, 2 * P);
        const __m128i x = _mm_cvtsi64_si128((long long) bytes);
        if constexpr (P == 4) {
            const __m128i y = _mm_cvtepu8_epi16(x);
            return _mm_and_si128(_mm_or_si128(y, _mm_slli_epi16(y, 4)), _mm_set1_epi8(0x0F));
        } else if constexpr (P == 2) {
            __m128i y = _mm_cvtepu8_epi32(x);
            y         = _mm_or_si128(y, _mm_slli_epi32(y, 12));
            y         = _mm_or_si128(y, _mm_slli_epi32(y, 6));
            return _mm_and_si128(y, _mm_set1_epi8(0x03));
        } else {
            const __m128i twice = _mm_shuffle_epi8(x, _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
            const __m128i bit   = _mm_set1_epi64x((long long) 0x8040201008040201ull);
            return _mm_min_epu8(_mm_and_si128(twice, bit), _mm_set1_epi8(1));
        }
    }
}

template <int LOWER>
static inline __m128i join_bytes(__m128i upper, __m128i lower) {
    return _mm_or_si128(_mm_slli_epi32(upper, LOWER), lower);
}

static inline void store_bytes(uint8_t * out, int, __m128i x) { _mm_storeu_si128((__m128i *) out, x); }
#elif MINICACHE_LANES == 4
static const int LEVELS_AT_ONCE = MINICACHE_CODE_UNIT;

struct plane_part {};

static inline plane_part first_bytes(int, int) { return {}; }

// which byte of a plane of P bits each level is in, and how far it is to be shifted
template <int P>
struct plane_places {
    uint8_t byte[LEVELS_AT_ONCE];
    int8_t  shift[LEVELS_AT_ONCE];

    constexpr plane_places() : byte(), shift() {
        for (int i = 0; i < LEVELS_AT_ONCE; ++i) {
            byte[i]  = (uint8_t) (i * P / 8);
            shift[i] = (int8_t) -(i * P % 8);
        }
    }
};

template <int P>
static inline uint8x16_t plane_bytes(const uint8_t * plane, plane_part) {
    if constexpr (P == 8) {
        return vld1q_u8(plane);
    } else {
        static constexpr plane_places<P> at;

        uint64_t bytes = 0;
        memcpy(&bytes, plane, 2 * P);
        const uint8x16_t x = vqtbl1q_u8(vcombine_u8(vcreate_u8(bytes), vcreate_u8(0)), vld1q_u8(at.byte));
        return vandq_u8(vshlq_u8(x, vld1q_s8(at.shift)), vdupq_n_u8((1 << P) - 1));
    }
}

template <int LOWER>
static inline uint8x16_t join_bytes(uint8x16_t upper, uint8x16_t lower) {
    return vorrq_u8(vshlq_n_u8(upper, LOWER), lower);
}

static inline void store_bytes(uint8_t * out, int, uint8x16_t x) { vst1q_u8(out, x); }
#else
static const int LEVELS_AT_ONCE = MINICACHE_CODE_UNIT;

struct plane_part {};

struct level_bytes {
    uint8_t x[LEVELS_AT_ONCE];
};

static inline plane_part first_bytes(int, int) { return {}; }

template <int P>
static inline level_bytes plane_bytes(const uint8_t * plane, plane_part) {
    uint8_t bytes[2 * P];
    memcpy(bytes, plane, sizeof(bytes));

    level_bytes y;
    for (int i = 0; i < LEVELS_AT_ONCE; ++i) {
        y.x[i] = bytes[i * P / 8] >> (i * P % 8) & ((1 << P) - 1);
    }
    return y;
}

template <int LOWER>
static inline level_bytes join_bytes(level_bytes upper, level_bytes lower) {
    for (int i = 0; i < LEVELS_AT_ONCE; ++i) {
        lower.x[i] = (uint8_t) (upper.x[i] << LOWER | lower.x[i]);
    }
    return lower;
}

static inline void store_bytes(uint8_t * out, int, level_bytes x) { memcpy(out, x.x, sizeof(x.x)); }
#endif

// LEVELS_AT_ONCE of a segment at a time for all rows, so that what does not depend on the row is set up once
template <int UPPER, int LOWER>
static inline void segment_levels(int n_unit, const minicache_rows & rows, int64_t & offset, uint8_t *& out, int64_t stride) {
    const int n_coef = MINICACHE_CODE_UNIT * n_unit;
    for (int i = 0; i < n_coef; i += LEVELS_AT_ONCE) {
        const int        m          = n_coef - i < LEVELS_AT_ONCE ? n_coef - i : LEVELS_AT_ONCE;
        const plane_part upper_part = first_bytes(m, UPPER);
        const plane_part lower_part = first_bytes(m, LOWER);
        for (int c = 0; c < rows.n; ++c) {
            const uint8_t * plane = (const uint8_t *) rows.at[c] + offset;
            minicache_fetch_ahead(plane, rows.ahead, n_coef * (UPPER + LOWER) / 8);

            auto x = plane_bytes<UPPER>(plane + i * UPPER / 8, upper_part);
            if constexpr (LOWER > 0) {
                x = join_bytes<LOWER>(x, plane_bytes<LOWER>(plane + n_coef * UPPER / 8 + i * LOWER / 8, lower_part));
            }
            store_bytes(out + c * stride + i, m, x);
        }
    }
    offset += n_coef * (UPPER + LOWER) / 8;
    out += n_coef;
}

#if defined(__AVX512VBMI__)
// PARTS of them, which start at parts[0], of rows of up to 64*VECS bytes
template <int VECS, int PARTS, typename T>
static inline void levels_parts(const T * parts, const minicache_rows & rows, int n_byte, uint8_t * out, int64_t stride) {
    static_assert(VECS == 1 || VECS == 2 || VECS == 4);

    __m512i   byte[PARTS];
    __m512i   upper[PARTS];
    __m512i   lower[PARTS];
    __m512i   is_upper[PARTS];
    __m512i   is_level[PARTS];
    __mmask64 far[PARTS];  // bytes of the second half of the row
    for (int i = 0; i < PARTS; ++i) {
        byte[i]     = _mm512_loadu_si512(parts[i].byte);
        upper[i]    = _mm512_loadu_si512(parts[i].upper);
        lower[i]    = _mm512_loadu_si512(parts[i].lower);
        is_upper[i] = _mm512_loadu_si512(parts[i].is_upper);
        is_level[i] = _mm512_loadu_si512(parts[i].is_level);
        far[i]      = _mm512_movepi8_mask(byte[i]);
    }
    __mmask64 in_row[VECS];
    for (int k = 0; k < VECS; ++k) {
        const int n = n_byte - 64 * k;
        in_row[k]   = n >= 64 ? ~0ull : n > 0 ? (1ull << n) - 1 : 0;
    }
    for (int c = 0; c < rows.n; ++c) {
        const uint8_t * row = (const uint8_t *) rows.at[c];
        minicache_fetch_ahead(row, rows.ahead, n_byte);

        __m512i x[VECS];
        for (int k = 0; k < VECS; ++k) {
            x[k] = _mm512_maskz_loadu_epi8(in_row[k], row + 64 * k);
        }
        for (int i = 0; i < PARTS; ++i) {
            __m512i y;
            if constexpr (VECS == 1) {
                y = _mm512_permutexvar_epi8(byte[i], x[0]);
            } else {
                y = _mm512_permutex2var_epi8(x[0], byte[i], x[1]);
            }
            if constexpr (VECS == 4) {
                y = _mm512_mask_blend_epi8(far[i], y, _mm512_permutex2var_epi8(x[2], byte[i], x[3]));
            }
            // is_upper ? upper bits : lower bits
            const __m512i level = _mm512_ternarylogic_epi32(
                is_upper[i], _mm512_multishift_epi64_epi8(upper[i], y), _mm512_multishift_epi64_epi8(lower[i], y), 0xCA);
            _mm512_storeu_si512(out + c * stride + 64 * i, _mm512_and_si512(level, is_level[i]));
        }
    }
}
#endif

minicache_code_levels::minicache_code_levels(const minicache_code_layout & layout) :
    layout(layout), n_byte(minicache_code_bytes(layout)) {
#if defined(__AVX512VBMI__)
    const int n_level = minicache_code_size(layout);
    if (n_byte > 256 || n_level > 64 * MAX_PARTS) {
        return;
    }
    n_part = (n_level + 63) / 64;
    memset(parts, 0, n_part * sizeof(part));
    for (int u = 0; u < n_level / MINICACHE_CODE_UNIT; ++u) {
        const minicache_code_unit unit    = minicache_code_unit_at(layout, u);
        const int                 n_upper = minicache_code_upper(unit.width);
        const int                 n_lower = unit.width - n_upper;
        for (int i = 0; i < MINICACHE_CODE_UNIT; ++i) {
            part &    x    = parts[u / 4];
            const int j    = u % 4 * MINICACHE_CODE_UNIT + i;
            const int word = i / 8;  // of the unit
            const int at   = i % 8;

            // byte `at` of the word: n_upper bytes of the upper plane, then those of the lower one
            x.byte[j]     = (uint8_t) (at < n_upper           ? unit.upper + word * n_upper + at :
                                       at < n_upper + n_lower ? unit.lower + word * n_lower + at - n_upper :
                                                                0);
            x.upper[j]    = (uint8_t) ((at * n_upper - n_lower) & 63);
            x.lower[j]    = (uint8_t) (8 * n_upper + at * n_lower);
            x.is_upper[j] = (uint8_t) (((1 << n_upper) - 1) << n_lower);
            x.is_level[j] = (uint8_t) ((1 << unit.width) - 1);
        }
    }
#endif
}

void minicache_code_levels::read(const minicache_rows & rows, uint8_t * out, int64_t stride) const {
#if defined(__AVX512VBMI__)
    // as many parts at a time as there are registers for
    for_rows<4>(n_part, [&](int64_t i, auto PARTS) {
        if (n_byte > 128) {
            levels_parts<4, PARTS()>(parts + i, rows, n_byte, out + 64 * i, stride);
        } else if (n_byte > 64) {
            levels_parts<2, PARTS()>(parts + i, rows, n_byte, out + 64 * i, stride);
        } else {
            levels_parts<1, PARTS()>(parts + i, rows, n_byte, out + 64 * i, stride);
        }
    });
    if (n_part > 0) {
        return;
    }
#endif
    int64_t offset = minicache_code_mag_bytes(layout);

    for_segments(
        layout, [&](auto planes, int n_unit) { segment_levels<planes.upper, planes.lower>(n_unit, rows, offset, out, stride); });
}

void minicache_code_zeros(const minicache_code_layout & layout, float * out) {
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        const float half = 0.5f * (float) ((1 << minicache_code_width(i)) - 1);
        for (int c = 0; c < MINICACHE_CODE_UNIT * layout.n_unit[i]; ++c) {
            *out++ = half;
        }
    }
}
