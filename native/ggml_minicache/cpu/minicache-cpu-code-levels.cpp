#include "minicache-code-unit.h"
#include "minicache-cpu-code-segments.h"
#include "minicache-cpu-code.h"
#include "minicache-cpu-kernels.h"
#include "minicache-cpu-simd.h"

#include <cstring>

// Reads code rows as levels, a byte each, for products of integers.

#if MINICACHE_LANES == 16 && defined(__AVX512BW__)
// coefficients that are read at a time, and the mask of their bytes in a plane
static const int LEVELS_AT_ONCE = 64;

typedef __mmask64 plane_part;

static inline plane_part first_bytes(int n_coef, int p) { return n_coef * p == 512 ? ~0ull : (1ull << n_coef * p / 8) - 1; }

// The levels of a plane of P bits, a byte each. No byte beyond the part is touched.
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

// A shift of words carries nothing from byte to byte, because levels with two planes have at most 6 bits.
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

// which byte of a plane of P bits each level is in, and by how much to shift it
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

// Reads a segment of all rows, LEVELS_AT_ONCE levels at a time, so that what does not depend on the row is set up once.
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
// Reads PARTS parts of rows of up to 64*VECS bytes.
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

#if defined(__AVX512VBMI__)
// A part's numbers for the 16 levels of a unit, by its width. A unit has two words of eight levels; byte i of a word is the i-th of
// the upper plane's bytes for those levels, then comes one after another of the lower plane's.
struct unit_pattern {
    uint8_t byte[MINICACHE_CODE_UNIT];      // from the unit's beginning in its plane
    uint8_t is_lower[MINICACHE_CODE_UNIT];  // the byte is one of the lower plane's
    uint8_t upper[MINICACHE_CODE_UNIT];
    uint8_t lower[MINICACHE_CODE_UNIT];
    uint8_t is_upper[MINICACHE_CODE_UNIT];
    uint8_t is_level[MINICACHE_CODE_UNIT];

    explicit unit_pattern(int width) {
        const int n_upper = minicache_code_upper(width);
        const int n_lower = width - n_upper;
        for (int i = 0; i < MINICACHE_CODE_UNIT; ++i) {
            const int word = i / 8;
            const int at   = i % 8;

            is_lower[i] = at >= n_upper && at < width;
            byte[i]     = (uint8_t) (at < n_upper ? word * n_upper + at : at < width ? word * n_lower + at - n_upper : 0);
            upper[i]    = (uint8_t) ((at * n_upper - n_lower) & 63);
            lower[i]    = (uint8_t) (8 * n_upper + at * n_lower);
            is_upper[i] = (uint8_t) (((1 << n_upper) - 1) << n_lower);
            is_level[i] = (uint8_t) ((1 << width) - 1);
        }
    }
};

static const unit_pattern & pattern_of(int width) {
    static const unit_pattern patterns[] = { unit_pattern(1), unit_pattern(2), unit_pattern(3), unit_pattern(4), unit_pattern(5),
        unit_pattern(6), unit_pattern(8) };
    return patterns[width == 8 ? 6 : width - 1];
}
#endif

minicache_code_levels::minicache_code_levels(const minicache_code_layout & layout, part * scratch) :
    layout(layout), n_byte(minicache_code_bytes(layout)), parts(scratch) {
#if defined(__AVX512VBMI__)
    const int n_level = minicache_code_size(layout);
    if (n_byte > 256) {
        return;
    }
    n_part = (int) n_part_of(n_level);
    memset(parts, 0, n_part * sizeof(part));
    for (int u = 0; u < n_level / MINICACHE_CODE_UNIT; ++u) {
        const minicache_code_unit unit    = minicache_code_unit_at(layout, u);
        const unit_pattern &      pattern = pattern_of(unit.width);

        part &    x = parts[u / 4];
        const int j = u % 4 * MINICACHE_CODE_UNIT;
        for (int i = 0; i < MINICACHE_CODE_UNIT; ++i) {
            x.byte[j + i] = (uint8_t) (pattern.byte[i] + (pattern.is_lower[i] ? unit.lower : unit.upper));
        }
        memcpy(x.upper + j, pattern.upper, MINICACHE_CODE_UNIT);
        memcpy(x.lower + j, pattern.lower, MINICACHE_CODE_UNIT);
        memcpy(x.is_upper + j, pattern.is_upper, MINICACHE_CODE_UNIT);
        memcpy(x.is_level + j, pattern.is_level, MINICACHE_CODE_UNIT);
    }
#endif
}

void minicache_code_levels::read(const minicache_rows & rows, uint8_t * out, int64_t stride) const {
#if defined(__AVX512VBMI__)
    // four parts at a time fit into the registers
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
