#pragma once

// Shared codes on the CPU: the parts of a codec, the angles of a base, and the bytes of a code row. See minicache-code.h.

#include "ggml.h"
#include "minicache-code.h"
#include "minicache-cpu-rows.h"
#include "minicache-turn.h"

#include <cmath>
#include <cstdint>

// The codec of one KV head's K or V.
struct minicache_code_head {
    minicache_code_layout layout;

    int64_t row;  // bytes of a token's row before the head's code row
    int64_t d;    // head size
    int64_t r;    // coefficients

    const float *       mag;     // [n_layer][2]   log_min and log_step of each layer
    const float *       weight;  // [n_layer*d]
    const float *       gain;    // [r]
    const ggml_fp16_t * dec;     // [n_layer*d][r]

    int64_t n_layer() const { return layout.n_layer; }

    // numbers of all layers together
    int64_t n() const { return layout.n_layer * d; }

    const ggml_fp16_t * decoder(int side) const { return dec + side * d * r; }

    // the logarithm of magnitude(), -inf for 0
    float log_magnitude(const uint8_t * row, int side) const {
        return row[side] == 0 ? -INFINITY : mag[2 * side] + (float) (row[side] - 1) * mag[2 * side + 1];
    }

    float magnitude(const uint8_t * row, int side) const {
        return minicache_code_mag_value(row[side], mag[2 * side], mag[2 * side + 1]);
    }
};

minicache_code_head minicache_code_head_k(const minicache_code_shape & shape, const void * codec, int64_t head_kv);
minicache_code_head minicache_code_head_v(const minicache_code_shape & shape, const void * codec, int64_t head_kv);

static inline const float * minicache_code_freq(const minicache_code_shape & shape, const void * codec) {
    return (const float *) ((const char *) codec + minicache_codec_offsets_of(shape).freq);
}

// The cosines and sines of a base, in double. They are computed only when the base changes.
class minicache_code_angles {
  public:
    // scratch [2*n_pair]
    minicache_code_angles(const minicache_code_shape & shape, const void * codec, double * scratch) :
        freq(minicache_code_freq(shape, codec)), n(minicache_turn_pairs(shape)), cos_b(scratch), sin_b(scratch + n) {}

    const double * cosines() const { return cos_b; }

    const double * sines() const { return sin_b; }

    // Returns whether the base has changed.
    bool set(int32_t base) {
        if (known && base == at) {
            return false;
        }
        minicache_turn_angles_at(base, freq, n, cos_b, sin_b);
        known = true;
        at    = base;
        return true;
    }

  private:
    const float * freq;
    const int     n;
    double *      cos_b;
    double *      sin_b;
    bool          known = false;
    int32_t       at    = 0;
};

// Writes levels to the planes of a code row, behind its magnitudes.
void minicache_code_write(const minicache_code_layout & layout, const uint8_t * levels, uint8_t * row);

// Reads the coefficients of n rows to out [n][stride]: minicache_code_coefficients(), vectorised.
void minicache_code_read(const minicache_code_layout & layout, const uint8_t * const * rows, int n, float * out, int64_t stride);

// Reads the levels of code rows of one layout.
class minicache_code_levels {
  public:
    // How AVX-512 VBMI puts together 64 levels of a row of up to 256 bytes, by permutations of bytes and by shifts that pick
    // any eight bits of a 64-bit word. Each such word collects the bytes with the upper bits of eight levels and those with
    // their lower bits, and each level picks its own bits from it.
    struct part {
        uint8_t byte[64];      // which byte of the row each byte of the words is
        uint8_t upper[64];     // the bit of the word where a level's upper bits begin, minus the number of its lower bits
        uint8_t lower[64];     // the bit of the word where a level's lower bits begin
        uint8_t is_upper[64];  // mask of a level's upper bits
        uint8_t is_level[64];  // mask of all bits of a level
    };

    // the parts of a row of r levels
    static int64_t n_part_of(int64_t r) { return (r + 63) / 64; }

    // scratch [n_part_of()], which must stay
    minicache_code_levels(const minicache_code_layout & layout, part * scratch);

    // Reads levels as unsigned integers to out [rows.n][stride]; stride is a multiple of 64.
    void read(const minicache_rows & rows, uint8_t * out, int64_t stride) const;

  private:
    const minicache_code_layout layout;
    const int                   n_byte;

    int    n_part = 0;  // 0: rows are read segment by segment
    part * parts;
};

// Writes the level at which each coefficient is zero, (2^w - 1)/2, to out [r].
void minicache_code_zeros(const minicache_code_layout & layout, float * out);
