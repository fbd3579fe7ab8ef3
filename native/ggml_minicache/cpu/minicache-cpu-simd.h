#pragma once

// Vectors of AVX-512, AVX2, NEON or a single number, as the target of the compilation has them. If llama.cpp builds its CPU
// variants, each of them compiles this for itself, and the one that fits the machine is loaded.
//
//   minicache_vec   MINICACHE_LANES floats
//   minicache_ivec  as many int32, if MINICACHE_LEVELS is 1, which means that there are integer dot products

#include "ggml.h"
#include "simd-mappings.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 minicache_vec;
#define MINICACHE_LANES 16
static inline minicache_vec vec_zero() { return _mm512_setzero_ps(); }
static inline minicache_vec vec_set(float x) { return _mm512_set1_ps(x); }
static inline minicache_vec vec_load(const float * p) { return _mm512_loadu_ps(p); }
static inline void          vec_store(float * p, minicache_vec x) { _mm512_storeu_ps(p, x); }
static inline minicache_vec vec_fma(minicache_vec a, minicache_vec b, minicache_vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline minicache_vec vec_add(minicache_vec a, minicache_vec b) { return _mm512_add_ps(a, b); }
static inline minicache_vec vec_sub(minicache_vec a, minicache_vec b) { return _mm512_sub_ps(a, b); }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return _mm512_mul_ps(a, b); }
static inline minicache_vec vec_max(minicache_vec a, minicache_vec b) { return _mm512_max_ps(a, b); }
static inline minicache_vec vec_min(minicache_vec a, minicache_vec b) { return _mm512_min_ps(a, b); }
static inline float         vec_top(minicache_vec x) { return _mm512_reduce_max_ps(x); }
static inline float         vec_sum(minicache_vec x) { return _mm512_reduce_add_ps(x); }
static inline minicache_vec vec_load(const ggml_fp16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
static inline minicache_vec vec_load(const ggml_bf16_t * p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)), 16));
}
static inline minicache_vec vec_load(const uint8_t * p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) p)));
}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
typedef __m256              minicache_vec;
#define MINICACHE_LANES 8
static inline minicache_vec vec_zero() { return _mm256_setzero_ps(); }
static inline minicache_vec vec_set(float x) { return _mm256_set1_ps(x); }
static inline minicache_vec vec_load(const float * p) { return _mm256_loadu_ps(p); }
static inline void          vec_store(float * p, minicache_vec x) { _mm256_storeu_ps(p, x); }
static inline minicache_vec vec_fma(minicache_vec a, minicache_vec b, minicache_vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline minicache_vec vec_add(minicache_vec a, minicache_vec b) { return _mm256_add_ps(a, b); }
static inline minicache_vec vec_sub(minicache_vec a, minicache_vec b) { return _mm256_sub_ps(a, b); }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return _mm256_mul_ps(a, b); }
static inline minicache_vec vec_max(minicache_vec a, minicache_vec b) { return _mm256_max_ps(a, b); }
static inline minicache_vec vec_min(minicache_vec a, minicache_vec b) { return _mm256_min_ps(a, b); }
static inline float         vec_top(minicache_vec x) {
    __m128 r = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    r        = _mm_max_ps(r, _mm_movehl_ps(r, r));
    r        = _mm_max_ss(r, _mm_movehdup_ps(r));
    return _mm_cvtss_f32(r);
}
static inline float vec_sum(minicache_vec x) {
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    r        = _mm_add_ps(r, _mm_movehl_ps(r, r));
    r        = _mm_add_ss(r, _mm_movehdup_ps(r));
    return _mm_cvtss_f32(r);
}
static inline minicache_vec vec_load(const ggml_fp16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
static inline minicache_vec vec_load(const ggml_bf16_t * p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)), 16));
}
static inline minicache_vec vec_load(const uint8_t * p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) p)));
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
static inline minicache_vec vec_add(minicache_vec a, minicache_vec b) { return vaddq_f32(a, b); }
static inline minicache_vec vec_sub(minicache_vec a, minicache_vec b) { return vsubq_f32(a, b); }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return vmulq_f32(a, b); }
static inline minicache_vec vec_max(minicache_vec a, minicache_vec b) { return vmaxq_f32(a, b); }
static inline minicache_vec vec_min(minicache_vec a, minicache_vec b) { return vminq_f32(a, b); }
static inline float         vec_top(minicache_vec x) { return vmaxvq_f32(x); }
static inline float         vec_sum(minicache_vec x) { return vaddvq_f32(x); }
static inline minicache_vec vec_load(const ggml_fp16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline minicache_vec vec_load(const ggml_bf16_t * p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *) p), 16));
}
static inline minicache_vec vec_load(const uint8_t * p) {
    uint32_t four;
    memcpy(&four, p, sizeof(four));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
#else
typedef float               minicache_vec;
#define MINICACHE_LANES 1
static inline minicache_vec vec_zero() { return 0.0f; }
static inline minicache_vec vec_set(float x) { return x; }
static inline minicache_vec vec_load(const float * p) { return *p; }
static inline void          vec_store(float * p, minicache_vec x) { *p = x; }
static inline minicache_vec vec_fma(minicache_vec a, minicache_vec b, minicache_vec c) { return a * b + c; }
static inline minicache_vec vec_add(minicache_vec a, minicache_vec b) { return a + b; }
static inline minicache_vec vec_sub(minicache_vec a, minicache_vec b) { return a - b; }
static inline minicache_vec vec_mul(minicache_vec a, minicache_vec b) { return a * b; }
static inline minicache_vec vec_max(minicache_vec a, minicache_vec b) { return a > b ? a : b; }
static inline minicache_vec vec_min(minicache_vec a, minicache_vec b) { return a < b ? a : b; }
static inline float         vec_top(minicache_vec x) { return x; }
static inline float         vec_sum(minicache_vec x) { return x; }
static inline minicache_vec vec_load(const ggml_fp16_t * p) { return GGML_CPU_FP16_TO_FP32(*p); }
static inline minicache_vec vec_load(const ggml_bf16_t * p) { return GGML_BF16_TO_FP32(*p); }
static inline minicache_vec vec_load(const uint8_t * p) { return (float) *p; }
#endif

// Keeps x in a register; GCC 12 would load it again for each use.
static inline minicache_vec vec_keep(minicache_vec x) {
#if defined(__GNUC__) && defined(__AVX2__)
    __asm__("" : "+v"(x));
#endif
    return x;
}

//
// Integer dot products of levels, 0 to 255, with factors. Four levels are a word. With MINICACHE_BYTE_DOT the factors are
// signed bytes, and ivec_dot() takes words of both. Otherwise they have 16 bits, and ivec_dot() takes the even or the odd
// levels, and words of two even or two odd factors.
//

#if MINICACHE_LANES == 16 && defined(__AVX512BW__)
#define MINICACHE_LEVELS 1
typedef __m512i              minicache_ivec;
static inline minicache_ivec ivec_zero() { return _mm512_setzero_si512(); }
static inline minicache_ivec ivec_set(int32_t x) { return _mm512_set1_epi32(x); }
static inline minicache_ivec ivec_load(const void * p) { return _mm512_loadu_si512(p); }
static inline void           ivec_store(void * p, minicache_ivec x) { _mm512_storeu_si512(p, x); }
static inline minicache_ivec ivec_add(minicache_ivec a, minicache_ivec b) { return _mm512_add_epi32(a, b); }
static inline minicache_ivec ivec_mul(minicache_ivec a, minicache_ivec b) { return _mm512_mullo_epi32(a, b); }
static inline minicache_ivec ivec_min(minicache_ivec a, minicache_ivec b) { return _mm512_min_epi32(a, b); }
static inline minicache_ivec ivec_max(minicache_ivec a, minicache_ivec b) { return _mm512_max_epi32(a, b); }
static inline minicache_ivec ivec_and(minicache_ivec a, minicache_ivec b) { return _mm512_and_si512(a, b); }
static inline minicache_ivec ivec_shr8(minicache_ivec x) { return _mm512_srai_epi32(x, 8); }
static inline minicache_ivec ivec_round(minicache_vec x) { return _mm512_cvtps_epi32(x); }
static inline int32_t        ivec_sum(minicache_ivec x) { return _mm512_reduce_add_epi32(x); }
static inline int32_t        ivec_top(minicache_ivec x) { return _mm512_reduce_max_epi32(x); }
// stores the lowest byte of each number
static inline void ivec_store_bytes(int8_t * p, minicache_ivec x) { _mm_storeu_si128((__m128i *) p, _mm512_cvtepi32_epi8(x)); }
static inline minicache_ivec ivec_shl8(minicache_ivec x) { return _mm512_slli_epi32(x, 8); }
static inline minicache_vec  ivec_float(minicache_ivec x) { return _mm512_cvtepi32_ps(x); }
#if defined(__AVX512VNNI__)
#define MINICACHE_BYTE_DOT 1
static inline minicache_ivec ivec_dot(minicache_ivec sum, minicache_ivec levels, minicache_ivec factors) {
    return _mm512_dpbusd_epi32(sum, levels, factors);
}
#else
static inline minicache_ivec ivec_even(minicache_ivec x) { return _mm512_and_si512(x, _mm512_set1_epi16(0xFF)); }
static inline minicache_ivec ivec_odd(minicache_ivec x) { return _mm512_srli_epi16(x, 8); }
static inline minicache_ivec ivec_dot(minicache_ivec sum, minicache_ivec levels, minicache_ivec factors) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(levels, factors));
}
#endif
#elif MINICACHE_LANES == 8
#define MINICACHE_LEVELS 1
typedef __m256i              minicache_ivec;
static inline minicache_ivec ivec_zero() { return _mm256_setzero_si256(); }
static inline minicache_ivec ivec_set(int32_t x) { return _mm256_set1_epi32(x); }
static inline minicache_ivec ivec_load(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline void           ivec_store(void * p, minicache_ivec x) { _mm256_storeu_si256((__m256i *) p, x); }
static inline minicache_ivec ivec_add(minicache_ivec a, minicache_ivec b) { return _mm256_add_epi32(a, b); }
static inline minicache_ivec ivec_mul(minicache_ivec a, minicache_ivec b) { return _mm256_mullo_epi32(a, b); }
static inline minicache_ivec ivec_min(minicache_ivec a, minicache_ivec b) { return _mm256_min_epi32(a, b); }
static inline minicache_ivec ivec_max(minicache_ivec a, minicache_ivec b) { return _mm256_max_epi32(a, b); }
static inline minicache_ivec ivec_and(minicache_ivec a, minicache_ivec b) { return _mm256_and_si256(a, b); }
static inline minicache_ivec ivec_shr8(minicache_ivec x) { return _mm256_srai_epi32(x, 8); }
static inline minicache_ivec ivec_round(minicache_vec x) { return _mm256_cvtps_epi32(x); }
static inline int32_t        ivec_sum(minicache_ivec x) {
    const __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i z = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xB1)));
}
static inline int32_t ivec_top(minicache_ivec x) {
    const __m128i y = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i z = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(z, _mm_shuffle_epi32(z, 0xB1)));
}
// stores the lowest byte of each number
static inline void ivec_store_bytes(int8_t * p, minicache_ivec x) {
    const __m256i lowest = _mm256_and_si256(x, _mm256_set1_epi32(0xFF));
    const __m128i words  = _mm_packus_epi32(_mm256_castsi256_si128(lowest), _mm256_extracti128_si256(lowest, 1));
    _mm_storel_epi64((__m128i *) p, _mm_packus_epi16(words, words));
}
static inline minicache_ivec ivec_shl8(minicache_ivec x) { return _mm256_slli_epi32(x, 8); }
static inline minicache_vec  ivec_float(minicache_ivec x) { return _mm256_cvtepi32_ps(x); }
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define MINICACHE_BYTE_DOT 1
static inline minicache_ivec ivec_dot(minicache_ivec sum, minicache_ivec levels, minicache_ivec factors) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, levels, factors);
#else
    return _mm256_dpbusd_epi32(sum, levels, factors);
#endif
}
#else
static inline minicache_ivec ivec_even(minicache_ivec x) { return _mm256_and_si256(x, _mm256_set1_epi16(0xFF)); }
static inline minicache_ivec ivec_odd(minicache_ivec x) { return _mm256_srli_epi16(x, 8); }
static inline minicache_ivec ivec_dot(minicache_ivec sum, minicache_ivec levels, minicache_ivec factors) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(levels, factors));
}
#endif
#elif MINICACHE_LANES == 4 && defined(__ARM_FEATURE_DOTPROD)
#define MINICACHE_LEVELS       1
#define MINICACHE_BYTE_DOT     1
typedef int32x4_t            minicache_ivec;
static inline minicache_ivec ivec_zero() { return vdupq_n_s32(0); }
static inline minicache_ivec ivec_set(int32_t x) { return vdupq_n_s32(x); }
static inline minicache_ivec ivec_load(const void * p) { return vld1q_s32((const int32_t *) p); }
static inline void           ivec_store(void * p, minicache_ivec x) { vst1q_s32((int32_t *) p, x); }
static inline minicache_ivec ivec_add(minicache_ivec a, minicache_ivec b) { return vaddq_s32(a, b); }
static inline minicache_ivec ivec_mul(minicache_ivec a, minicache_ivec b) { return vmulq_s32(a, b); }
static inline minicache_ivec ivec_min(minicache_ivec a, minicache_ivec b) { return vminq_s32(a, b); }
static inline minicache_ivec ivec_max(minicache_ivec a, minicache_ivec b) { return vmaxq_s32(a, b); }
static inline minicache_ivec ivec_and(minicache_ivec a, minicache_ivec b) { return vandq_s32(a, b); }
static inline minicache_ivec ivec_shr8(minicache_ivec x) { return vshrq_n_s32(x, 8); }
static inline minicache_ivec ivec_round(minicache_vec x) { return vcvtnq_s32_f32(x); }
static inline int32_t        ivec_sum(minicache_ivec x) { return vaddvq_s32(x); }
static inline int32_t        ivec_top(minicache_ivec x) { return vmaxvq_s32(x); }
// stores the lowest byte of each number
static inline void ivec_store_bytes(int8_t * p, minicache_ivec x) {
    const int16x4_t words = vmovn_s32(x);
    const int8x8_t  bytes = vmovn_s16(vcombine_s16(words, words));
    memcpy(p, &bytes, 4);
}
static inline minicache_ivec ivec_shl8(minicache_ivec x) { return vshlq_n_s32(x, 8); }
static inline minicache_vec  ivec_float(minicache_ivec x) { return vcvtq_f32_s32(x); }
// bytes are signed on both sides, so levels are counted from MINICACHE_LEVEL_ORIGIN
#define MINICACHE_LEVEL_ORIGIN 128
static inline minicache_ivec ivec_dot(minicache_ivec sum, minicache_ivec levels, minicache_ivec factors) {
    return vdotq_s32(sum, veorq_s8(vreinterpretq_s8_s32(levels), vdupq_n_s8(-128)), vreinterpretq_s8_s32(factors));
}
#else
#define MINICACHE_LEVELS 0
#endif

#if !defined(MINICACHE_LEVEL_ORIGIN)
#define MINICACHE_LEVEL_ORIGIN 0
#endif

//
// transposition of words
//

#if MINICACHE_LANES == 16
// swaps x[i][j] and x[j][i]
static inline void vec_transpose(__m512 * x) {
    __m512d y[16];
    for (int i = 0; i < 16; i += 4) {
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[i], x[i + 1]));
        const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(x[i], x[i + 1]));
        const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(x[i + 2], x[i + 3]));
        const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(x[i + 2], x[i + 3]));
        y[i]            = _mm512_unpacklo_pd(a, c);
        y[i + 1]        = _mm512_unpackhi_pd(a, c);
        y[i + 2]        = _mm512_unpacklo_pd(b, d);
        y[i + 3]        = _mm512_unpackhi_pd(b, d);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512d a = _mm512_shuffle_f64x2(y[j], y[4 + j], 0x88);
        const __m512d b = _mm512_shuffle_f64x2(y[j], y[4 + j], 0xDD);
        const __m512d c = _mm512_shuffle_f64x2(y[8 + j], y[12 + j], 0x88);
        const __m512d d = _mm512_shuffle_f64x2(y[8 + j], y[12 + j], 0xDD);
        x[j]            = _mm512_castpd_ps(_mm512_shuffle_f64x2(a, c, 0x88));
        x[8 + j]        = _mm512_castpd_ps(_mm512_shuffle_f64x2(a, c, 0xDD));
        x[4 + j]        = _mm512_castpd_ps(_mm512_shuffle_f64x2(b, d, 0x88));
        x[12 + j]       = _mm512_castpd_ps(_mm512_shuffle_f64x2(b, d, 0xDD));
    }
}
#elif MINICACHE_LANES == 8
static inline void vec_transpose(__m256 * x) {
    __m256d y[8];
    for (int i = 0; i < 8; i += 4) {
        const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[i], x[i + 1]));
        const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(x[i], x[i + 1]));
        const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(x[i + 2], x[i + 3]));
        const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(x[i + 2], x[i + 3]));
        y[i]            = _mm256_unpacklo_pd(a, c);
        y[i + 1]        = _mm256_unpackhi_pd(a, c);
        y[i + 2]        = _mm256_unpacklo_pd(b, d);
        y[i + 3]        = _mm256_unpackhi_pd(b, d);
    }
    for (int j = 0; j < 4; ++j) {
        x[j]     = _mm256_castpd_ps(_mm256_permute2f128_pd(y[j], y[4 + j], 0x20));
        x[4 + j] = _mm256_castpd_ps(_mm256_permute2f128_pd(y[j], y[4 + j], 0x31));
    }
}
#elif MINICACHE_LANES == 4
static inline void vec_transpose(float32x4_t * x) {
    const float32x4x2_t a = vtrnq_f32(x[0], x[1]);
    const float32x4x2_t b = vtrnq_f32(x[2], x[3]);
    x[0]                  = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    x[1]                  = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    x[2]                  = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    x[3]                  = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
#else
static inline void vec_transpose(float *) {}
#endif

// The sums of several vectors' numbers, as one vector. Each step adds the halves of two vectors, which leaves half as many
// numbers. vec_fold() does the first steps for MINICACHE_FOLD vectors, and vec_sums() the other ones for as many folds as give
// MINICACHE_LANES sums.
#define MINICACHE_FOLD (MINICACHE_LANES == 1 ? 1 : 4)

static inline minicache_vec vec_fold(const minicache_vec * x) {
#if MINICACHE_LANES == 16
    const auto words = [](__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); };
    const auto a     = _mm512_castps_pd(words(x[0], x[1]));
    const auto b     = _mm512_castps_pd(words(x[2], x[3]));
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
#elif MINICACHE_LANES == 8
    return _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
#elif MINICACHE_LANES == 4
    return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3]));
#else
    return x[0];
#endif
}

static inline minicache_vec vec_sums(const minicache_vec * folds) {
#if MINICACHE_LANES == 16
    const auto quarters = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    };
    return quarters(quarters(folds[0], folds[1]), quarters(folds[2], folds[3]));
#elif MINICACHE_LANES == 8
    return _mm256_add_ps(_mm256_permute2f128_ps(folds[0], folds[1], 0x20), _mm256_permute2f128_ps(folds[0], folds[1], 0x31));
#else
    return folds[0];
#endif
}

// Fetches the n bytes that lie `ahead` of p into the second level of the cache, because they will soon be read; nothing if
// `ahead` is 0. Few lines are fetched at a time, in step with the work, because a core drops those that it has no room for.
static inline void minicache_fetch_ahead(const void * p, int64_t ahead, int64_t n) {
#if defined(__GNUC__)
    for (int64_t i = 0; ahead != 0 && i < n; i += 64) {
        __builtin_prefetch((const void *) ((uintptr_t) p + (uintptr_t) (ahead + i)), 0, 2);
    }
#else
    (void) p, (void) ahead, (void) n;
#endif
}

static const int64_t MINICACHE_PAD = 32;  // two of the widest vectors

static inline int64_t minicache_padded(int64_t d) { return (d + MINICACHE_PAD - 1) / MINICACHE_PAD * MINICACHE_PAD; }

static inline void minicache_rescale(float * x, float factor, int64_t d) {
    const minicache_vec f = vec_set(factor);
    for (int64_t i = 0; i < d; i += MINICACHE_LANES) {
        vec_store(x + i, vec_mul(vec_load(x + i), f));
    }
}

// Load and store the first n numbers of a vector, or all if n is larger. Loading fills up with zeros; storing leaves what is
// behind them.
static inline minicache_vec vec_load_first(const float * p, int64_t n) {
    if (n >= MINICACHE_LANES) {
        return vec_load(p);
    }
    float x[MINICACHE_LANES] = {};
    memcpy(x, p, n * sizeof(float));
    return vec_load(x);
}

static inline void vec_store_first(float * p, int64_t n, minicache_vec x) {
    if (n >= MINICACHE_LANES) {
        vec_store(p, x);
        return;
    }
    float y[MINICACHE_LANES];
    vec_store(y, x);
    memcpy(p, y, n * sizeof(float));
}
