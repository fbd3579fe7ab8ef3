#pragma once

// The shared code of a group of n layers, byte by byte. This file depends on no backend: the host and the device compile this
// same text.
//
// For each KV head, K (at its block-relative position, see below) and V of all layers are stored as one code each. With u =
// x/|x|,
//
//   y = [w_0*u_0; w_1*u_1; ...]                 n*d numbers; w are the weights of their squared errors
//   z_c = gain_c * Σ_i D[i][c]*y_i              r coefficients, each in units of its step, r <= n*d
//   û_i = Σ_c D[i][c]*(L_c - (2^w_c - 1)/2)     rows s*d..s*d+d-1 of D are the decoder of layer s
//   x̂_s = m_s*û_s                               each layer's own magnitude
//
// with the level L_c = z_c/a + (2^w_c - 1)/2, rounded and clamped to w_c bits. A magnitude m is one byte q: 0 for 0, else
// m = exp(log_min + (q - 1)*log_step). It is not |x|, because û is not a unit vector. It makes m*û as long as x when lengths are
// weighted like errors: m² = Σ w_i*x_i² / Σ w_i*û_i², over the layer's numbers, and 0 if û is 0.
//
// The scale a multiplies the steps of one code. Of minicache_code_scale(), it is the one that loses least:
//
//   Σ_c (z_c - a*(L_c - (2^w_c - 1)/2))²/gain_c
//
// because the weighted length of a column of D is proportional to its step, and gain_c to 1/step². A rare token's coefficients may
// be far larger than those that the steps suit, and clamped levels would lose most of them. The row need not hold a: magnitudes
// take it up.
//
// Each KV head has widths of its own, because heads differ in what their errors do to the model's output. A code row holds one KV
// head of one token: a byte of magnitude for each layer, a byte of 0 if their number is odd, then the segments from the widest to
// the narrowest. A segment of n coefficients of w bits is one or two planes: the upper bits of all
// its levels, then their lower bits (8: 8; 6: 4 + 2; 5: 4 + 1; 4: 4; 3: 2 + 1; 2: 2; 1: 1). A plane of p bits is a
// little-endian string of bits, in which level i has the bits i*p to i*p + p - 1. Coefficients come in units of 16, so planes
// are whole numbers of 16-bit words. A token's row in the cache is the code rows of its KV heads, one after the other.
//
// Block-relative K: RoPE composes, R(p) = R(b)R(p - b). What is coded is R(-b)k, K as it would be at position p - b. Here b,
// the cell's base, is the position rounded down to a multiple of the plan's block when the token came in. The query is rotated
// back by b as well: q·k = (R(-b)q)·(R(-b)k), exactly. A context shift moves b only. Models without RoPE have base 0.

#include <math.h>
#include <stdint.h>

#ifndef MINICACHE_HD
#if defined(__CUDACC__) || defined(__HIPCC__)
#define MINICACHE_HD __host__ __device__
#else
#define MINICACHE_HD
#endif
#endif

#define MINICACHE_CODE_UNIT   16
#define MINICACHE_CODE_WIDTHS 7
#define MINICACHE_CODE_LAYERS 4  // the most layers that share a code

// bits of segment i, widest first
static inline MINICACHE_HD int minicache_code_width(int i) { return i == 0 ? 8 : 7 - i; }  // 8 6 5 4 3 2 1

// bits of the upper plane of a segment, which may be all of them
static inline MINICACHE_HD int minicache_code_upper(int width) { return width == 3 ? 2 : width == 5 || width == 6 ? 4 : width; }

// the units of 16 coefficients in each segment, and the number of layers, which have a magnitude each
struct minicache_code_layout {
    uint8_t n_unit[MINICACHE_CODE_WIDTHS];
    uint8_t n_layer;
};

// bytes of a row's magnitudes; the segments follow them
static inline MINICACHE_HD int minicache_code_mag_bytes(struct minicache_code_layout layout) {
    return layout.n_layer + layout.n_layer % 2;
}

// coefficients of a code
static inline MINICACHE_HD int minicache_code_size(struct minicache_code_layout layout) {
    int n = 0;
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        n += layout.n_unit[i];
    }
    return MINICACHE_CODE_UNIT * n;
}

// bytes of a code row, magnitudes included
static inline MINICACHE_HD int minicache_code_bytes(struct minicache_code_layout layout) {
    int n = minicache_code_mag_bytes(layout);
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        n += MINICACHE_CODE_UNIT / 8 * minicache_code_width(i) * layout.n_unit[i];
    }
    return n;
}

// Which numbers of a head RoPE turns together: none, neighbours (2i, 2i + 1), or halves (i, i + n_rot/2) as NEOX does.
enum minicache_rope {
    MINICACHE_ROPE_NONE       = 0,
    MINICACHE_ROPE_NEIGHBOURS = 1,
    MINICACHE_ROPE_HALVES     = 2,
};

// The code rows of one KV head's K, or V: their layout, and how much comes before them.
struct minicache_head_layout {
    struct minicache_code_layout layout;

    int32_t row;   // bytes of a token's row before this head's code row
    int32_t coef;  // coefficients of the heads before this one
};

// What encoding and attention need to know about a group before they look into its codec. It says of K and of V:
//   d      the head size
//   r      the most coefficients that a KV head has
//   row    the most bytes that a KV head's code row has
//   size   coefficients of all KV heads
//   bytes  bytes of a token's row, which has all KV heads
struct minicache_code_shape {
    int16_t d_k;
    int16_t d_v;
    int16_t n_head_kv;
    int16_t n_layer;
    int16_t rope;   // enum minicache_rope
    int16_t n_rot;  // numbers of a head of K that RoPE turns, 0 without RoPE
    int16_t r_k;
    int16_t r_v;
    int16_t row_k;
    int16_t row_v;
    int32_t size_k;
    int32_t size_v;
    int32_t bytes_k;
    int32_t bytes_v;
};

// The codec of a group of n layers is one array of the heads' layouts, then float32 words, then float16 ones. Where heads have
// r coefficients, of which each has its own number, those of one head follow those of another without a gap.
//        heads    [2][n_head_kv]           minicache_head_layout of K, then of V
//   F32  freq     [n_rot/2]                radians per position of each turned pair of numbers
//   F32  mag      [n_head_kv][2*n][2]      log_min and log_step of |K| of each layer, then of |V|
//   F32  weight_k [n_head_kv][n*d_k]       w
//   F32  gain_k   [n_head_kv][r]
//   F32  weight_v [n_head_kv][n*d_v]
//   F32  gain_v   [n_head_kv][r]
//   F16  dec_k    [n_head_kv][n*d_k][r]    D
//   F16  dec_v    [n_head_kv][n*d_v][r]
// This struct holds the offsets of its parts, and its size, in bytes.
struct minicache_codec_offsets {
    int64_t heads;
    int64_t freq;
    int64_t mag;
    int64_t weight_k;
    int64_t gain_k;
    int64_t weight_v;
    int64_t gain_v;
    int64_t dec_k;
    int64_t dec_v;
    int64_t size;
};

// Pairs of numbers of a head that RoPE turns, when it turns n_rot numbers in all.
static inline MINICACHE_HD int minicache_turn_pairs_of(int32_t rope, int32_t n_rot) {
    return rope == MINICACHE_ROPE_NONE ? 0 : n_rot / 2;
}

static inline MINICACHE_HD struct minicache_codec_offsets minicache_codec_offsets_of(struct minicache_code_shape s) {
    const int64_t n = s.n_head_kv;
    const int64_t l = s.n_layer;

    struct minicache_codec_offsets o;
    o.heads    = 0;
    o.freq     = o.heads + 2 * n * (int64_t) sizeof(struct minicache_head_layout);
    o.mag      = o.freq + 4 * (int64_t) minicache_turn_pairs_of(s.rope, s.n_rot);
    o.weight_k = o.mag + 4 * n * 4 * l;
    o.gain_k   = o.weight_k + 4 * n * l * s.d_k;
    o.weight_v = o.gain_k + 4 * (int64_t) s.size_k;
    o.gain_v   = o.weight_v + 4 * n * l * s.d_v;
    o.dec_k    = o.gain_v + 4 * (int64_t) s.size_v;
    o.dec_v    = o.dec_k + 2 * l * s.d_k * s.size_k;
    o.size     = o.dec_v + 2 * l * s.d_v * s.size_v;
    return o;
}

// The layout of a KV head's K, or V, in a codec.
static inline MINICACHE_HD struct minicache_head_layout minicache_codec_head(
    struct minicache_code_shape s, const void * codec, int is_v, int head_kv) {
    const char * heads = (const char *) codec + minicache_codec_offsets_of(s).heads;
    return ((const struct minicache_head_layout *) heads)[is_v * s.n_head_kv + head_kv];
}

// Magnitudes: the byte 0 is 0, and 1 to 255 are a geometric series that begins at exp(log_min).
static inline MINICACHE_HD uint8_t minicache_code_mag(float m, float log_min, float log_step) {
    if (!(m > 0.0f)) {
        return 0;
    }
    const float q = roundf((logf(m) - log_min) / log_step) + 1.0f;
    return (uint8_t) (q > 255.0f ? 255.0f : q > 1.0f ? q : 1.0f);  // 1 for NaN too
}

static inline MINICACHE_HD float minicache_code_mag_value(uint8_t q, float log_min, float log_step) {
    return q == 0 ? 0.0f : expf(log_min + (float) (q - 1) * log_step);
}

// The scales of a code: the powers of 2^(1/8) from 0.6 to 4, of which number MINICACHE_CODE_NO_SCALE is 1.
#define MINICACHE_CODE_SCALES   23
#define MINICACHE_CODE_NO_SCALE 6

static inline MINICACHE_HD float minicache_code_scale(int i) {
    const float eighths[8] = { 1.0f, 1.09050773f, 1.18920712f, 1.29683955f, 1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f };
    return 0.5f * eighths[(i + 2) % 8] * (float) (1 << (i + 2) / 8);
}

// The level of a coefficient z, which is in units of its step.
static inline MINICACHE_HD int minicache_code_level(float z, int width) {
    const float top = (float) ((1 << width) - 1);
    const float l   = roundf(z + 0.5f * top);
    return (int) (l > top ? top : l > 0.0f ? l : 0.0f);  // 0 for NaN too
}

// The p bits of level i in a plane.
static inline MINICACHE_HD int minicache_code_get(const uint8_t * plane, int p, int i) {
    return plane[i * p / 8] >> (i * p % 8) & ((1 << p) - 1);
}

// Reads the coefficients L - (2^w - 1)/2 of a code row, level by level.
static inline MINICACHE_HD void minicache_code_coefficients(
    struct minicache_code_layout layout, const uint8_t * row, float * out) {
    const uint8_t * plane = row + minicache_code_mag_bytes(layout);
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        const int n     = MINICACHE_CODE_UNIT * layout.n_unit[i];
        const int width = minicache_code_width(i);
        const int upper = minicache_code_upper(width);
        const int lower = width - upper;

        for (int j = 0; j < n; ++j) {
            int level = minicache_code_get(plane, upper, j);
            if (lower > 0) {
                level = level << lower | minicache_code_get(plane + n / 8 * upper, lower, j);
            }
            out[j] = (float) level - 0.5f * (float) ((1 << width) - 1);
        }
        plane += n / 8 * width;
        out += n;
    }
}
