#pragma once

// Queries as integers, for products with levels.

#include "minicache-cpu-rows.h"
#include "minicache-cpu-simd.h"

#include <cmath>
#include <cstring>

#if MINICACHE_LEVELS
// Queries as integers of 24 bits, which are as exact as float32: x + rest/256, with 16 bits for x and 8 for the rest, in the
// words that ivec_dot() takes. With 8 bits in all, as llama.cpp's own products with quantized rows have, the error would be
// 1/127 of the largest number.
struct minicache_level_queries {
    // Words of a span of levels. As bytes, four levels share a word; as pairs of 16 bits, even and odd levels are apart.
#if defined(MINICACHE_BYTE_DOT)
    static const int64_t REST_WORDS = 8;
#else
    static const int64_t REST_WORDS = 16;
#endif
    static const int64_t WHOLE_WORDS = 16;  // 8 of upper and 8 of lower bytes, or 8 even and 8 odd

    int64_t   n_span;
    int32_t * whole;      // [n_rows][n_span][WHOLE_WORDS]
    int32_t * rest;       // [n_rows][n_span][REST_WORDS]
    int32_t * bias;       // [n_rows][n_span]: -Σ zero*x
    int32_t * rest_bias;  // [n_rows][n_span]: -Σ zero*rest
    float *   sum;        // [n_rows][n_span]: Σ x + rest/256
    float *   unit;       // [n_rows][n_span], all the same for levels with scales

    static int64_t n_word(int64_t n_rows, int64_t ld) {
        return n_rows * (ld / MINICACHE_LEVEL_SPAN) * (WHOLE_WORDS + REST_WORDS + 4);
    }

    minicache_level_queries(float * scratch, int64_t n_rows, int64_t ld) :
        n_span(ld / MINICACHE_LEVEL_SPAN), whole((int32_t *) scratch), rest(whole + n_rows * n_span * WHOLE_WORDS),
        bias(rest + n_rows * n_span * REST_WORDS), rest_bias(bias + n_rows * n_span),
        sum((float *) (rest_bias + n_rows * n_span)), unit(sum + n_rows * n_span) {}

    // the rows from r on
    minicache_level_queries from(int64_t r) const {
        minicache_level_queries x = *this;
        x.whole += r * n_span * WHOLE_WORDS;
        x.rest += r * n_span * REST_WORDS;
        x.bias += r * n_span;
        x.rest_bias += r * n_span;
        x.sum += r * n_span;
        x.unit += r * n_span;
        return x;
    }

    // Sets query r from n floats, n up to 32*n_span.
    //   by_span: each span has a unit of its own; for levels without scales, whose factors may differ a lot
    void set(int64_t r, const float * q, int64_t n, const float * zero, bool by_span) {
        // the last numbers, where they end within a span, with zeros behind them
        float last[MINICACHE_LEVEL_SPAN] = {};
        if (n % MINICACHE_LEVEL_SPAN != 0) {
            memcpy(last, q + n - n % MINICACHE_LEVEL_SPAN, sizeof(float) * (n % MINICACHE_LEVEL_SPAN));
        }
        const auto span = [&](int64_t at) { return at + MINICACHE_LEVEL_SPAN <= n ? q + at : at < n ? last : zeros(); };

        float top = 0.0f;
        for (int64_t at = 0; at < n && !by_span; at += MINICACHE_LEVEL_SPAN) {
            const float x = largest(span(at));
            top           = x > top ? x : top;
        }
        for (int64_t g = 0; g < n_span; ++g) {
            const int64_t at = g * MINICACHE_LEVEL_SPAN;
            set_span(r * n_span + g, span(at), by_span ? largest(span(at)) : top, zero + at);
        }
    }

  private:
    static const int N = MINICACHE_LEVEL_SPAN / MINICACHE_LANES;  // vectors of a span

    static const float * zeros() {
        static const float x[MINICACHE_LEVEL_SPAN] = {};
        return x;
    }

    // the largest absolute value of a span, infinite if any number is not finite
    static float largest(const float * q) {
        // absolute values compare the same as integers, with infinity and NaN at the end
        minicache_ivec all = ivec_zero();
        for (int k = 0; k < N; ++k) {
            all = ivec_max(all, ivec_and(ivec_load(q + k * MINICACHE_LANES), ivec_set(0x7FFFFFFF)));
        }
        const int32_t top = ivec_top(all);
        float         x;
        memcpy(&x, &top, sizeof(x));
        return top < 0x7F800000 ? x : INFINITY;
    }

    // Sets span i of all rows' spans.
    void set_span(int64_t i, const float * q, float top, const float * zero) {
        static const int32_t TOP = 127 * 256 + 127;

        const bool          finite  = top < INFINITY;
        const minicache_vec inverse = vec_set(finite && top > 1e-30f ? (float) TOP / top : 0.0f);
        unit[i]                     = finite ? top / (float) TOP : NAN;
        q                           = finite ? q : zeros();

        minicache_ivec x[N];
        minicache_ivec y[N];                   // the rest
        minicache_ivec twice_x = ivec_zero();  // of (zero - origin)*x
        minicache_ivec twice_y = ivec_zero();
        minicache_vec  total   = vec_zero();
        for (int k = 0; k < N; ++k) {
            const minicache_vec z = vec_mul(inverse, vec_load(q + k * MINICACHE_LANES));
            x[k]                  = ivec_round(z);
            y[k]                  = ivec_min(ivec_round(vec_mul(vec_set(256.0f), vec_sub(z, ivec_float(x[k])))), ivec_set(127));
            total                 = vec_add(total, z);

            const minicache_vec  level  = vec_sub(vec_load(zero + k * MINICACHE_LANES), vec_set(MINICACHE_LEVEL_ORIGIN));
            const minicache_ivec zero_2 = ivec_round(vec_add(level, level));
            twice_x                     = ivec_add(twice_x, ivec_mul(x[k], zero_2));
            twice_y                     = ivec_add(twice_y, ivec_mul(y[k], zero_2));
        }
        // the half of an odd number goes into the rest
        const int32_t twice = ivec_sum(twice_x);
        const int32_t odd   = twice % 2;
        bias[i]             = -(twice - odd) / 2;
        rest_bias[i]        = -(ivec_sum(twice_y) + 256 * odd) / 2;
        sum[i]              = vec_sum(total);
#if defined(MINICACHE_BYTE_DOT)
        auto * high = (int8_t *) (whole + i * WHOLE_WORDS);
        auto * low  = high + MINICACHE_LEVEL_SPAN;
        for (int k = 0; k < N; ++k) {
            const minicache_ivec upper = ivec_shr8(ivec_add(x[k], ivec_set(128)));
            ivec_store_bytes(high + k * MINICACHE_LANES, upper);
            ivec_store_bytes(low + k * MINICACHE_LANES, x[k]);
            ivec_store_bytes((int8_t *) (rest + i * REST_WORDS) + k * MINICACHE_LANES, y[k]);
        }
#else
        take_apart(x, whole + i * WHOLE_WORDS);
        take_apart(y, rest + i * REST_WORDS);
#endif
    }

#if !defined(MINICACHE_BYTE_DOT)
    static void take_apart(const minicache_ivec * x, int32_t * words) {
        int32_t all[MINICACHE_LEVEL_SPAN];
        int16_t pairs[2][MINICACHE_LEVEL_SPAN / 2];
        for (int k = 0; k < N; ++k) {
            ivec_store(all + k * MINICACHE_LANES, x[k]);
        }
        for (int i = 0; i < MINICACHE_LEVEL_SPAN / 2; ++i) {
            pairs[0][i] = (int16_t) all[2 * i];
            pairs[1][i] = (int16_t) all[2 * i + 1];
        }
        memcpy(words, pairs, sizeof(pairs));
    }
#endif
};
#endif
