#pragma once

// A codec for the tests, and what code rows mean, bit by bit and in double. It is written from the text of minicache-code.h,
// without that file's functions for levels, planes and magnitudes.

#include "minicache-code.h"
#include "test-case.h"

// units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits
using code_units = std::vector<int>;

std::string           units_name(const code_units & units);
minicache_code_layout layout_of(const code_units & units, int n_layer);

// The codec of K, or V, of all KV heads.
struct codec_part {
    code_units       units;
    int              d;
    int              n_head_kv;
    int              n_layer;
    std::vector<int> widths;  // [r]

    std::vector<float> mag;     // [n_head_kv][n_layer][2]
    std::vector<float> weight;  // [n_head_kv][n_layer*d]
    std::vector<float> gain;    // [n_head_kv][r]
    std::vector<float> dec;     // [n_head_kv][n_layer*d][r]

    int r() const { return (int) widths.size(); }

    int mag_bytes() const { return n_layer + n_layer % 2; }

    int row_bytes() const;

    // the levels of one head's code row, what they stand for in one layer, and that layer's magnitude
    std::vector<int>    levels(const uint8_t * row) const;
    std::vector<double> decode(int head, int side, const uint8_t * row) const;
    double              magnitude(int head, int side, const uint8_t * row) const;

    double level_half(int c) const { return 0.5 * ((1 << widths[c]) - 1); }
};

struct codec_shape {
    code_units     units_k = { 0, 0, 0, 4, 0, 0, 0 };
    code_units     units_v = { 0, 0, 0, 4, 0, 0, 0 };
    int            d_k     = 64;
    int            d_v     = 64;
    int            n_rot   = 64;
    minicache_rope rope    = MINICACHE_ROPE_HALVES;
    int            n_layer = 2;
};

// how decoders are drawn
enum decoders {
    GAUSSIAN,
    ORTHONORMAL,  // after weighting: with n_layer*d coefficients only rounding loses anything
};

struct test_codec {
    codec_part k;
    codec_part v;

    minicache_code_shape shape;
    std::vector<float>   freq;  // [n_rot/2]

    test_codec() = default;

    test_codec(const codec_shape & s, int n_head_kv);

    void draw(rng_t & rng, decoders how);

    void set(ggml_tensor * tensor) const;

    // RoPE by a position, which may be negative
    void turn(double position, std::vector<double> & x) const;
};
