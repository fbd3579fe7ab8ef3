#pragma once

// A codec for the tests, and what code rows mean, bit by bit and in double. It is written from the text of minicache-code.h,
// without that file's functions for levels, planes and magnitudes.

#include "minicache-code-heads.h"
#include "test-case.h"

// units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits
using code_units = std::vector<int>;

std::string           units_name(const code_units & units);
minicache_code_layout layout_of(const code_units & units, int n_layer);

// The units of a KV head's code, from those of head 0, so that no two heads in a row are alike, and some have fewer coefficients.
code_units units_of_head(const code_units & first, int head);

// The codec of K, or V, of one KV head.
struct head_codec {
    code_units       units;
    std::vector<int> widths;  // [r]

    std::vector<float> mag;     // [n_layer][2]
    std::vector<float> weight;  // [n_layer*d]
    std::vector<float> gain;    // [r]
    std::vector<float> dec;     // [n_layer*d][r]

    int r() const { return (int) widths.size(); }

    double level_half(int c) const { return 0.5 * ((1 << widths[c]) - 1); }
};

// The codec of K, or V, of all KV heads.
struct codec_part {
    int                     d;
    int                     n_layer;
    std::vector<head_codec> heads;

    int mag_bytes() const { return n_layer + n_layer % 2; }

    // bytes of a head's code row, of a token's row before it, and of a token's row
    int row_bytes(int head) const;
    int row_begin(int head) const;
    int token_bytes() const { return row_begin((int) heads.size()); }

    // the levels of one head's code row, what they stand for in one layer, and that layer's magnitude
    std::vector<int>    levels(int head, const uint8_t * row) const;
    std::vector<double> decode(int head, int side, const uint8_t * row) const;
    double              magnitude(int head, int side, const uint8_t * row) const;
};

struct codec_shape {
    code_units     units_k = { 0, 0, 0, 4, 0, 0, 0 };
    code_units     units_v = { 0, 0, 0, 4, 0, 0, 0 };
    int            d_k     = 64;
    int            d_v     = 64;
    int            n_rot   = 64;
    minicache_rope rope    = MINICACHE_ROPE_HALVES;
    int            n_layer = 2;
    bool           alike   = false;  // all heads have the units of the first
};

// how decoders are drawn
enum decoders {
    GAUSSIAN,
    ORTHONORMAL,  // after weighting: with n_layer*d coefficients only rounding loses anything
};

struct test_codec {
    codec_part k;
    codec_part v;

    minicache_code_shape               shape;
    std::vector<minicache_head_layout> layouts;  // of K's heads, then of V's
    std::vector<float>                 freq;     // [n_rot/2]

    test_codec() = default;

    test_codec(const codec_shape & s, int n_head_kv);

    void draw(rng_t & rng, decoders how);

    void set(ggml_tensor * tensor) const;

    // RoPE by a position, which may be negative
    void turn(double position, std::vector<double> & x) const;
};
