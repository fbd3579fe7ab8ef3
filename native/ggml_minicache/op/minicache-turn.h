#pragma once

// RoPE by a base: how many pairs of numbers it turns, by which angles, and the turn itself. The host and the device compile this
// same text.

#include "minicache-code.h"

#ifdef __cplusplus
#include <cmath>
#endif

static inline MINICACHE_HD int minicache_turn_pairs(struct minicache_code_shape shape) {
    return minicache_turn_pairs_of(shape.rope, shape.n_rot);
}

//
// on the host: whole heads, in float32 or double
//

#ifdef __cplusplus

#if defined(_MSC_VER)
#define MINICACHE_RESTRICT __restrict
#else
#define MINICACHE_RESTRICT __restrict__
#endif

// Cosines and sines of the angles at a position, computed in double.
//   freq          [n_pair] radians per position
//   cos_b, sin_b  [n_pair]
template <typename T>
static inline void minicache_turn_angles_at(int64_t position, const float * freq, int n_pair, T * cos_b, T * sin_b) {
    for (int i = 0; i < n_pair; ++i) {
        const double angle = (double) position * freq[i];
        cos_b[i]           = (T) std::cos(angle);
        sin_b[i]           = (T) std::sin(angle);
    }
}

// Replaces x by R(b)x or, if `back` is set, by R(-b)x.
//   cos_b, sin_b  [minicache_turn_pairs()] of the angles at position b
//   x             [d_k]
template <typename T>
static inline void minicache_turn(const minicache_code_shape & shape, const T * MINICACHE_RESTRICT cos_b,
    const T * MINICACHE_RESTRICT sin_b, bool back, T * MINICACHE_RESTRICT x) {
    const int n    = minicache_turn_pairs(shape);
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

#endif

//
// on the device: one number at a time, in float32
//

// Cosine and sine of position*freq. The angle is reduced in double, in turns: at a million positions float32 would have lost
// its fourth digit.
static inline MINICACHE_HD void minicache_turn_angle(int32_t position, float freq, float * c, float * s) {
    const double turns = (double) position * ((double) freq * 0.15915494309189533577);  // 1/2π
    const float  rest  = (float) (turns - rint(turns));
#ifdef __CUDA_ARCH__
    sincospif(2.0f * rest, s, c);
#else
    *c = (float) cos(6.28318530717958647693 * rest);
    *s = (float) sin(6.28318530717958647693 * rest);
#endif
}

// Number i of R(b)x or, if `back` is set, of R(-b)x. Numbers that RoPE does not turn stay what they are.
//   n_pair        minicache_turn_pairs()
//   cos_b, sin_b  [n_pair]
static inline MINICACHE_HD float minicache_turned(
    int32_t rope, int n_pair, const float * cos_b, const float * sin_b, int back, const float * x, int i) {
    if (i >= 2 * n_pair) {
        return x[i];
    }
    const int neighbours = rope == MINICACHE_ROPE_NEIGHBOURS;
    const int pair       = neighbours ? i / 2 : i % n_pair;
    const int second     = neighbours ? i % 2 : i / n_pair;
    const int other      = neighbours ? i ^ 1 : second ? i - n_pair : i + n_pair;

    // the first number becomes x0*cos - x1*sin, the second x1*cos + x0*sin; turning back changes the sign of the sine
    const float s = second == !back ? sin_b[pair] : -sin_b[pair];
    return x[i] * cos_b[pair] + x[other] * s;
}
