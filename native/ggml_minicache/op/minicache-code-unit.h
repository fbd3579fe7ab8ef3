#pragma once

// Reading and writing a unit of a code row, 16 coefficients of one width, word by word, for kernels that take many units at once.
// minicache-code.h says what the bits mean. The host and the device compile this same text.
//
// Levels are read in pairs (j, j + 8), one in the lower and one in the upper half of a word, so that the bits of a plane's two
// halves are shifted and masked together. Therefore a tile holds the coefficients of each unit in the order 0 8 1 9 2 10 ...:
// these are their places.

#include "minicache-code.h"

// The place of coefficient i of a code in a tile, and the coefficient at a place.
static inline MINICACHE_HD int minicache_code_place(int i) { return (i & ~15) | (i & 7) << 1 | (i & 8) >> 3; }

static inline MINICACHE_HD int minicache_code_placed(int place) { return (place & ~15) | (place & 1) << 3 | (place & 14) >> 1; }

// Where a unit's planes begin in a code row, in bytes, and the unit's width.
struct minicache_code_unit {
    int16_t upper;
    int16_t lower;  // if there is a lower plane
    int16_t width;
};

// Unit u of the code, 0 <= u < minicache_code_size(layout)/16.
static inline MINICACHE_HD struct minicache_code_unit minicache_code_unit_at(struct minicache_code_layout layout, int u) {
    struct minicache_code_unit unit = { 0, 0, 0 };

    int offset = minicache_code_mag_bytes(layout);
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        const int n     = layout.n_unit[i];
        const int width = minicache_code_width(i);
        const int upper = minicache_code_upper(width);
        if (u < n) {
            unit.upper = (int16_t) (offset + 2 * upper * u);
            unit.lower = (int16_t) (offset + 2 * upper * n + 2 * (width - upper) * u);
            unit.width = (int16_t) width;
            return unit;
        }
        u -= n;
        offset += 2 * width * n;
    }
    return unit;
}

#ifdef __cplusplus

// Levels j and j + 8 in a plane of P bits, from the unit's P words.
template <int P>
static inline MINICACHE_HD uint32_t minicache_plane_pair(const uint16_t * words, int j) {
    if (P == 1) {
        const uint32_t w = words[0];
        return ((w & 0xFF) | (w & 0xFF00) << 8) >> j & 0x00010001u;
    }
    const int      n = 16 / P;  // levels in a word
    const uint32_t w = words[j / n] | (uint32_t) words[j / n + P / 2] << 16;
    return w >> (j % n * P) & (0x00010001u * ((1u << P) - 1));
}

// Levels j and j + 8 of a unit, for all j, from its planes. Rows begin at even addresses.
template <int UPPER, int LOWER>
static inline MINICACHE_HD void minicache_unit_pairs(const uint16_t * upper, const uint16_t * lower, uint32_t * pairs) {
    for (int j = 0; j < 8; ++j) {
        pairs[j] = minicache_plane_pair<UPPER>(upper, j);
        if (LOWER > 0) {
            pairs[j] = pairs[j] << LOWER | minicache_plane_pair<(LOWER > 0 ? LOWER : 1)>(lower, j);
        }
    }
}

// Word w of a plane of P bits, from the unit's 16 levels; the plane has their bits from `shift` on.
template <int P>
static inline MINICACHE_HD uint16_t minicache_plane_word(const uint8_t * levels, int w, int shift) {
    uint32_t x = 0;
    for (int i = 0; i < 16 / P; ++i) {
        x |= ((uint32_t) levels[w * (16 / P) + i] >> shift & ((1u << P) - 1)) << (i * P);
    }
    return (uint16_t) x;
}

// Writes the 16 levels of a unit to its planes.
template <int UPPER, int LOWER>
static inline MINICACHE_HD void minicache_unit_write(const uint8_t * levels, uint16_t * upper, uint16_t * lower) {
    for (int w = 0; w < UPPER; ++w) {
        upper[w] = minicache_plane_word<UPPER>(levels, w, LOWER);
    }
    for (int w = 0; w < LOWER; ++w) {
        lower[w] = minicache_plane_word<(LOWER > 0 ? LOWER : 1)>(levels, w, 0);
    }
}

// Calls f.operator()<UPPER, LOWER>() with the bits of the planes of a width.
template <typename F>
static inline MINICACHE_HD void minicache_unit_dispatch(int width, const F & f) {
    switch (width) {
        case 8:
            f.template operator()<8, 0>();
            break;
        case 6:
            f.template operator()<4, 2>();
            break;
        case 5:
            f.template operator()<4, 1>();
            break;
        case 4:
            f.template operator()<4, 0>();
            break;
        case 3:
            f.template operator()<2, 1>();
            break;
        case 2:
            f.template operator()<2, 0>();
            break;
        case 1:
            f.template operator()<1, 0>();
            break;
    }
}

#endif
