#pragma once

// The arithmetic of MiniCache for one head. It depends on no backend: the host and the device compile this same text.
// Source: Liu et al. 2024, arXiv 2405.14366, eqs. 3 and 4 (SLERP of directions, magnitudes kept).

#include <math.h>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define MINICACHE_HD __host__ __device__
#else
#define MINICACHE_HD
#endif

#define MINICACHE_PI 3.14159265358979323846

// magnitudes are stored in f16
#define MINICACHE_MAG_MAX 65504.0f

// If Ω is closer than this to 0 or π, sin Ω in float32 is too inexact to interpolate with.
#define MINICACHE_ANGLE_EPS 1e-3f

// How one token's two vectors of a head are merged: e = w_a*x_a + w_b*x_b.
struct minicache_blend {
    double w_a;
    double w_b;
    float  mag_a;
    float  mag_b;
    float  distance;  // Ω/π, [0, 1]
};

// Computes the blend from the sums of squares and the dot product of x_a and x_b, in double, so that no finite float32 vector
// overflows.
//   t  0 gives x_a's direction, 1 gives x_b's
static inline MINICACHE_HD struct minicache_blend minicache_blend_of(double aa, double bb, double ab, float t) {
    struct minicache_blend r;

    const double norm_a = sqrt(aa);
    const double norm_b = sqrt(bb);

    r.mag_a    = norm_a < MINICACHE_MAG_MAX ? (float) norm_a : MINICACHE_MAG_MAX;
    r.mag_b    = norm_b < MINICACHE_MAG_MAX ? (float) norm_b : MINICACHE_MAG_MAX;
    r.distance = 0.0f;

    // a zero vector has no direction: the other's is kept, and both layers are restored exactly
    if (aa == 0.0 || bb == 0.0) {
        r.w_a = aa == 0.0 ? 0.0 : 1.0 / norm_a;
        r.w_b = bb == 0.0 ? 0.0 : 1.0 / norm_b;
        return r;
    }

    double c = ab / (norm_a * norm_b);
    c        = c < -1.0 ? -1.0 : c > 1.0 ? 1.0 : c;

    const double omega = acos(c);

    r.distance = (float) (omega / MINICACHE_PI);

    double u_a;
    double u_b;
    if (omega < MINICACHE_ANGLE_EPS) {
        // the limit of SLERP, normalised: |(1-t)u_a + t u_b|² = 1 - 2t(1-t)(1 - cos Ω)
        const double norm = sqrt(1.0 - 2.0 * t * (1.0 - t) * (1.0 - c));
        u_a               = (1.0 - t) / norm;
        u_b               = t / norm;
    } else if (MINICACHE_PI - omega < MINICACHE_ANGLE_EPS) {
        // opposite vectors span no plane: a's direction, and the token is a first candidate for retention
        r.distance = 1.0f;
        u_a        = 1.0;
        u_b        = 0.0;
    } else {
        const double s = sin(omega);
        u_a            = sin((1.0 - t) * omega) / s;
        u_b            = sin(t * omega) / s;
    }

    r.w_a = u_a / norm_a;
    r.w_b = u_b / norm_b;

    return r;
}

// The mean of both vectors in place of a direction, which the paper compares with.
static inline MINICACHE_HD struct minicache_blend minicache_average_of(struct minicache_blend r) {
    r.w_a   = 0.5;
    r.w_b   = 0.5;
    r.mag_a = 1.0f;
    r.mag_b = 1.0f;
    return r;
}
