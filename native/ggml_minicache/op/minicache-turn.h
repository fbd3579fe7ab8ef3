#pragma once

// RoPE by a base, for kernels that turn numbers in float32; the host and the device compile this very text.

#include "minicache-code.h"

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

// pairs of numbers that RoPE turns
static inline MINICACHE_HD int minicache_turn_pairs(struct minicache_code_shape shape) {
    return shape.rope == MINICACHE_ROPE_NONE ? 0 : shape.n_rot / 2;
}

// What becomes of number i of R(b)x, or, `back`, of R(-b)x: the numbers that are not turned are themselves.
//   n_pair  of minicache_turn_pairs()
//   cos_b, sin_b [n_pair]
static inline MINICACHE_HD float minicache_turned(
    int32_t rope, int n_pair, const float * cos_b, const float * sin_b, int back, const float * x, int i) {
    if (i >= 2 * n_pair) {
        return x[i];
    }
    const int neighbours = rope == MINICACHE_ROPE_NEIGHBOURS;
    const int pair       = neighbours ? i / 2 : i % n_pair;
    const int second     = neighbours ? i % 2 : i / n_pair;
    const int other      = neighbours ? i ^ 1 : second ? i - n_pair : i + n_pair;

    // first: x0*cos - x1*sin, second: x1*cos + x0*sin; back turns the sine's sign
    const float s = second == !back ? sin_b[pair] : -sin_b[pair];
    return x[i] * cos_b[pair] + x[other] * s;
}
