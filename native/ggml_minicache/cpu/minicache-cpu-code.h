#pragma once

// Shared codes on the CPU: the parts of a codec, RoPE by a base, and the bytes of a code row. See minicache-code.h.

#include "ggml.h"
#include "minicache-code.h"
#include "minicache-cpu-rows.h"

#include <cmath>
#include <cstdint>

// the codec of one KV head's K or V
struct minicache_code_head {
    minicache_code_layout layout;

    int64_t d;  // numbers of a head
    int64_t r;  // coefficients

    const float *       mag;     // [n_layer][2]   log_min and log_step of each layer
    const float *       weight;  // [n_layer*d]
    const float *       gain;    // [r]
    const ggml_fp16_t * dec;     // [n_layer*d][r]

    int64_t n_layer() const { return layout.n_layer; }

    // numbers of all layers
    int64_t n() const { return layout.n_layer * d; }

    const ggml_fp16_t * decoder(int side) const { return dec + side * d * r; }

    // of minicache_code_mag_value(), -inf for 0
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

// pairs of numbers that RoPE turns
static inline int minicache_code_n_pair(const minicache_code_shape & shape) {
    return shape.rope == MINICACHE_ROPE_NONE ? 0 : shape.n_rot / 2;
}

#if defined(_MSC_VER)
#define MINICACHE_RESTRICT __restrict
#else
#define MINICACHE_RESTRICT __restrict__
#endif

// R(b)x, or R(-b)x, in place, from the cosine and sine of each pair's angle at position b
template <typename T>
static inline void minicache_code_turn(const minicache_code_shape & shape, const T * MINICACHE_RESTRICT cos_b,
    const T * MINICACHE_RESTRICT sin_b, bool back, T * MINICACHE_RESTRICT x) {
    const int n    = minicache_code_n_pair(shape);
    const T   sign = back ? (T) -1 : (T) 1;

    if (shape.rope == MINICACHE_ROPE_NEIGHBOURS) {
        for (int i = 0; i < n; ++i) {
            const T s = sign * sin_b[i];
            const T y = x[2 * i] * cos_b[i] - x[2 * i + 1] * s;

            x[2 * i + 1] = x[2 * i] * s + x[2 * i + 1] * cos_b[i];
            x[2 * i]     = y;
        }
    } else {
        for (int i = 0; i < n; ++i) {
            const T s = sign * sin_b[i];
            const T y = x[i] * cos_b[i] - x[i + n] * s;

            x[i + n] = x[i] * s + x[i + n] * cos_b[i];
            x[i]     = y;
        }
    }
}

// The cosines and sines of a base, in double; computed anew when the base is another than before.
class minicache_code_angles {
  public:
    // scratch [2*n_pair]
    minicache_code_angles(const minicache_code_shape & shape, const void * codec, double * scratch) :
        freq(minicache_code_freq(shape, codec)), n(minicache_code_n_pair(shape)), cos_b(scratch), sin_b(scratch + n) {}

    const double * cosines() const { return cos_b; }

    const double * sines() const { return sin_b; }

    // whether they are others than before
    bool set(int32_t base) {
        if (known && base == at) {
            return false;
        }
        for (int i = 0; i < n; ++i) {
            const double angle = (double) base * freq[i];
            cos_b[i]           = cos(angle);
            sin_b[i]           = sin(angle);
        }
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

// levels to the planes of a code row, behind its magnitudes
void minicache_code_write(const minicache_code_layout & layout, const uint8_t * levels, uint8_t * row);

// minicache_code_coefficients() of n rows, vectorised, to every `stride` numbers of `out`
void minicache_code_read(const minicache_code_layout & layout, const uint8_t * const * rows, int n, float * out, int64_t stride);

// Levels of code rows, for one layout.
class minicache_code_levels {
  public:
    explicit minicache_code_levels(const minicache_code_layout & layout);

    // from 0 on, to every `stride` bytes of `out`, a multiple of 64
    void read(const minicache_rows & rows, uint8_t * out, int64_t stride) const;

  private:
    static const int MAX_PARTS = 16;

    // How 64 levels of a row of up to 256 bytes are put together by permutations of bytes and shifts of eight bits at a time,
    // where there are such (AVX-512 VBMI): a word of 64 bits takes the bytes of eight levels' upper bits and those of their lower
    // ones, and each level takes its own bits of them.
    struct part {
        uint8_t byte[64];   // of the row
        uint8_t upper[64];  // the bit of the word from which on a level's upper bits are, less the number of its lower ones
        uint8_t lower[64];
        uint8_t is_upper[64];  // mask of a level's upper bits
        uint8_t is_level[64];  // of all
    };

    const minicache_code_layout layout;
    const int                   n_byte;

    int  n_part = 0;  // 0: read segment by segment
    part parts[MAX_PARTS];
};

// what a coefficient's level is counted from: (2^w - 1)/2, to `out` [r]
void minicache_code_zeros(const minicache_code_layout & layout, float * out);
