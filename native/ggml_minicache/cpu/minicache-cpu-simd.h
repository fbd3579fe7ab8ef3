#pragma once

// The two inner loops of the attention, over rows padded with zeros to a multiple of MINICACHE_PAD floats:
//   minicache_scores      s[r][c] = q[r]·k[c]
//   minicache_accumulate  acc[r] += Σ_c w[r][c]*v[c]
// written once over a vector type of AVX-512, AVX2, NEON or a single float.

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 minicache_vec;
#define MINICACHE_LANES 16
static inline minicache_vec vec_zero() { return _mm512_setzero_ps(); }
static inline minicache_vec vec_set(float x) { return _mm512_set1_ps(x); }
static inline minicache_vec vec_load(const float * p) { return _mm512_loadu_ps(p); }
static inline void          vec_store(float * p, minicache_vec x) { _mm512_storeu_ps(p, x); }
static inline minicache_vec vec_fma(minicache_vec a, minicache_vec b, minicache_vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return _mm512_mul_ps(a, b); }
static inline float         vec_sum(minicache_vec x) { return _mm512_reduce_add_ps(x); }
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
typedef __m256              minicache_vec;
#define MINICACHE_LANES 8
static inline minicache_vec vec_zero() { return _mm256_setzero_ps(); }
static inline minicache_vec vec_set(float x) { return _mm256_set1_ps(x); }
static inline minicache_vec vec_load(const float * p) { return _mm256_loadu_ps(p); }
static inline void          vec_store(float * p, minicache_vec x) { _mm256_storeu_ps(p, x); }
static inline minicache_vec vec_fma(minicache_vec a, minicache_vec b, minicache_vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return _mm256_mul_ps(a, b); }
static inline float         vec_sum(minicache_vec x) {
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    r        = _mm_add_ps(r, _mm_movehl_ps(r, r));
    r        = _mm_add_ss(r, _mm_movehdup_ps(r));
    return _mm_cvtss_f32(r);
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
typedef float32x4_t         minicache_vec;
#define MINICACHE_LANES 4
static inline minicache_vec vec_zero() { return vdupq_n_f32(0.0f); }
static inline minicache_vec vec_set(float x) { return vdupq_n_f32(x); }
static inline minicache_vec vec_load(const float * p) { return vld1q_f32(p); }
static inline void          vec_store(float * p, minicache_vec x) { vst1q_f32(p, x); }
static inline minicache_vec vec_fma(minicache_vec a, minicache_vec b, minicache_vec c) { return vfmaq_f32(c, a, b); }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return vmulq_f32(a, b); }
static inline float         vec_sum(minicache_vec x) { return vaddvq_f32(x); }
#else
typedef float               minicache_vec;
#define MINICACHE_LANES 1
static inline minicache_vec vec_zero() { return 0.0f; }
static inline minicache_vec vec_set(float x) { return x; }
static inline minicache_vec vec_load(const float * p) { return *p; }
static inline void          vec_store(float * p, minicache_vec x) { *p = x; }
static inline minicache_vec vec_fma(minicache_vec a, minicache_vec b, minicache_vec c) { return a * b + c; }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return a * b; }
static inline float         vec_sum(minicache_vec x) { return x; }
#endif

static const int64_t MINICACHE_PAD = 32;  // two of the widest vectors

static inline int64_t minicache_padded(int64_t d) { return (d + MINICACHE_PAD - 1) / MINICACHE_PAD * MINICACHE_PAD; }

// R query rows against C keys; 4x2 accumulators and their operands fit 16 registers
template <int R, int C>
static inline void minicache_scores_tile(const float * q, const float * k, int64_t d, float * s, int64_t lds) {
    minicache_vec acc[R][C];
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
            acc[r][c] = vec_zero();
        }
    }
    for (int64_t i = 0; i < d; i += MINICACHE_LANES) {
        minicache_vec x[C];
        for (int c = 0; c < C; ++c) {
            x[c] = vec_load(k + c * d + i);
        }
        for (int r = 0; r < R; ++r) {
            const minicache_vec y = vec_load(q + r * d + i);
            for (int c = 0; c < C; ++c) {
                acc[r][c] = vec_fma(y, x[c], acc[r][c]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
            s[r * lds + c] = vec_sum(acc[r][c]);
        }
    }
}

template <int R>
static inline void minicache_scores_rows(const float * q, const float * k, int n, int64_t d, float * s, int64_t lds) {
    int c = 0;
    for (; c + 2 <= n; c += 2) {
        minicache_scores_tile<R, 2>(q, k + c * d, d, s + c, lds);
    }
    if (c < n) {
        minicache_scores_tile<R, 1>(q, k + c * d, d, s + c, lds);
    }
}

// q [n_rows][d], k [n_keys][d], s [n_rows][lds]
static inline void minicache_scores(
    const float * q, int64_t n_rows, const float * k, int n_keys, int64_t d, float * s, int64_t lds) {
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        minicache_scores_rows<4>(q + r * d, k, n_keys, d, s + r * lds, lds);
    }
    switch (n_rows - r) {
        case 3:
            minicache_scores_rows<3>(q + r * d, k, n_keys, d, s + r * lds, lds);
            break;
        case 2:
            minicache_scores_rows<2>(q + r * d, k, n_keys, d, s + r * lds, lds);
            break;
        case 1:
            minicache_scores_rows<1>(q + r * d, k, n_keys, d, s + r * lds, lds);
            break;
    }
}

template <int R>
static inline void minicache_accumulate_rows(float * acc, const float * w, int64_t ldw, const float * v, int n, int64_t d) {
    for (int64_t i = 0; i < d; i += 2 * MINICACHE_LANES) {
        minicache_vec x[R][2];
        for (int r = 0; r < R; ++r) {
            x[r][0] = vec_load(acc + r * d + i);
            x[r][1] = vec_load(acc + r * d + i + MINICACHE_LANES);
        }
        for (int c = 0; c < n; ++c) {
            const minicache_vec y0 = vec_load(v + c * d + i);
            const minicache_vec y1 = vec_load(v + c * d + i + MINICACHE_LANES);
            for (int r = 0; r < R; ++r) {
                const minicache_vec z = vec_set(w[r * ldw + c]);
                x[r][0]               = vec_fma(z, y0, x[r][0]);
                x[r][1]               = vec_fma(z, y1, x[r][1]);
            }
        }
        for (int r = 0; r < R; ++r) {
            vec_store(acc + r * d + i, x[r][0]);
            vec_store(acc + r * d + i + MINICACHE_LANES, x[r][1]);
        }
    }
}

// acc [n_rows][d], w [n_rows][ldw], v [n_keys][d]
static inline void minicache_accumulate(
    float * acc, int64_t n_rows, const float * w, int64_t ldw, const float * v, int n_keys, int64_t d) {
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        minicache_accumulate_rows<4>(acc + r * d, w + r * ldw, ldw, v, n_keys, d);
    }
    switch (n_rows - r) {
        case 3:
            minicache_accumulate_rows<3>(acc + r * d, w + r * ldw, ldw, v, n_keys, d);
            break;
        case 2:
            minicache_accumulate_rows<2>(acc + r * d, w + r * ldw, ldw, v, n_keys, d);
            break;
        case 1:
            minicache_accumulate_rows<1>(acc + r * d, w + r * ldw, ldw, v, n_keys, d);
            break;
    }
}

static inline void minicache_rescale(float * x, float factor, int64_t d) {
    const minicache_vec f = vec_set(factor);
    for (int64_t i = 0; i < d; i += MINICACHE_LANES) {
        vec_store(x + i, vec_mul(vec_load(x + i), f));
    }
}
