#pragma once

// Scores and values over levels: integers, with a scale for each MINICACHE_LEVEL_SPAN of them (see minicache-cpu-rows.h). See
// minicache-cpu-kernels.h.

#include "minicache-cpu-kernels.h"
#include "minicache-cpu-level-queries.h"

#if MINICACHE_LEVELS
// Transposes the first d levels of each entry, [MINICACHE_LEVEL_BLOCK][ld], to words of four, [d/4][MINICACHE_LEVEL_BLOCK], in
// whole vectors of words.
static inline void minicache_level_words(const uint8_t * levels, int64_t ld, int64_t d, int n, int32_t * words) {
    for (int c = 0; c < n; c += MINICACHE_LANES) {
        for (int64_t i = 0; 4 * i < d; i += MINICACHE_LANES) {
            minicache_vec x[MINICACHE_LANES];
            for (int j = 0; j < MINICACHE_LANES; ++j) {
                memcpy(&x[j], levels + (c + j) * ld + 4 * i, sizeof(x[j]));
            }
            vec_transpose(x);
            for (int j = 0; j < MINICACHE_LANES; ++j) {
                memcpy(words + (i + j) * MINICACHE_LEVEL_BLOCK + c, &x[j], sizeof(x[j]));
            }
        }
    }
}

// acc += a span of levels times factors [R][ld], 8 words of each for bytes, 16 for pairs
template <int R>
static inline void level_dots(const int32_t * levels, const int32_t * factors, int64_t ld, minicache_ivec (&acc)[R]) {
    for (int i = 0; i < 8; ++i) {
        const minicache_ivec x = ivec_load(levels + i * MINICACHE_LEVEL_BLOCK);
        for (int r = 0; r < R; ++r) {
#if defined(MINICACHE_BYTE_DOT)
            acc[r] = ivec_dot(acc[r], x, ivec_set(factors[r * ld + i]));
#else
            acc[r] = ivec_dot(acc[r], ivec_even(x), ivec_set(factors[r * ld + i]));
            acc[r] = ivec_dot(acc[r], ivec_odd(x), ivec_set(factors[r * ld + 8 + i]));
#endif
        }
    }
}

// scores of one vector of entries
template <int R>
static inline void scores_levels(
    const minicache_level_queries & q, int64_t n, const int32_t * words, const minicache_level_rows & k, int c, float * s) {
    const int64_t ld       = q.n_span;
    const int64_t ld_whole = ld * minicache_level_queries::WHOLE_WORDS;
    const int64_t ld_rest  = ld * minicache_level_queries::REST_WORDS;

    const minicache_vec rest_unit = vec_set(1.0f / 256.0f);

    minicache_vec sums[R];
    for (int r = 0; r < R; ++r) {
        sums[r] = vec_zero();
    }
    for (int64_t g = 0; g < n; ++g) {
        const int32_t * levels = words + 8 * g * MINICACHE_LEVEL_BLOCK + c;
        const int32_t * whole  = q.whole + g * minicache_level_queries::WHOLE_WORDS;

        minicache_ivec low[R];
        minicache_ivec rest[R];
        for (int r = 0; r < R; ++r) {
            low[r]  = ivec_set(q.bias[r * ld + g]);
            rest[r] = ivec_set(q.rest_bias[r * ld + g]);
        }
        level_dots(levels, q.rest + g * minicache_level_queries::REST_WORDS, ld_rest, rest);
#if defined(MINICACHE_BYTE_DOT)
        level_dots(levels, whole + 8, ld_whole, low);
        minicache_ivec high[R];
        for (int r = 0; r < R; ++r) {
            high[r] = ivec_zero();
        }
        level_dots(levels, whole, ld_whole, high);
        for (int r = 0; r < R; ++r) {
            low[r] = ivec_add(low[r], ivec_shl8(high[r]));
        }
#else
        level_dots(levels, whole, ld_whole, low);
#endif
        const int64_t       at    = g * MINICACHE_LEVEL_BLOCK + c;
        const minicache_vec scale = k.scale ? vec_load(k.scale + at) : vec_zero();
        const minicache_vec min   = k.min ? vec_load(k.min + at) : vec_zero();
        for (int r = 0; r < R; ++r) {
            const minicache_vec dot = vec_fma(rest_unit, ivec_float(rest[r]), ivec_float(low[r]));
            sums[r]                 = vec_fma(dot, k.scale ? scale : vec_set(q.unit[r * ld + g]), sums[r]);
            if (k.min) {
                sums[r] = vec_fma(vec_set(q.sum[r * ld + g]), min, sums[r]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        vec_store(s + r * MINICACHE_BLOCK + c, vec_mul(vec_set(k.scale ? q.unit[r * ld] : 1.0f), sums[r]));
    }
}

// Scores s [n_rows][MINICACHE_BLOCK] of n_rows queries of d numbers, from the words of the keys. Entries of the last vector
// behind the n given ones get arbitrary scores.
static inline void minicache_scores_levels(const minicache_level_queries & q, int64_t n_rows, int64_t d, const int32_t * words,
    const minicache_level_rows & k, int n, float * s) {
    const int64_t n_span = (d + MINICACHE_LEVEL_SPAN - 1) / MINICACHE_LEVEL_SPAN;
    for_rows<4>(n_rows, [&](int64_t r, auto R) {
        for (int c = 0; c < n; c += MINICACHE_LANES) {
            scores_levels<R()>(q.from(r), n_span, words, k, c, s + r * MINICACHE_BLOCK);
        }
    });
}

// The weights of one row times the scales of each span of levels, to w [n_span][4][MINICACHE_LEVEL_BLOCK]. What the minima
// contribute is added to acc.
static inline void scale_weights(
    const float * weights, const minicache_level_rows & v, int n, int64_t d, float * w, float * acc) {
    for (int64_t i = 0; i < d; i += MINICACHE_LEVEL_SPAN) {
        const int64_t at  = i / MINICACHE_LEVEL_SPAN * MINICACHE_LEVEL_BLOCK;
        minicache_vec min = vec_zero();
        for (int c = 0; c < n; c += MINICACHE_LANES) {
            const minicache_vec x = vec_load(weights + c);
            vec_store(w + 4 * at + c, vec_mul(x, vec_load(v.scale + at + c)));
            min = v.min ? vec_fma(x, vec_load(v.min + at + c), min) : min;
        }
        const minicache_vec sum = vec_set(v.min ? vec_sum(min) : 0.0f);
        for (int64_t j = i; v.min && j < i + MINICACHE_LEVEL_SPAN && j < d; j += MINICACHE_LANES) {
            vec_store(acc + j, vec_add(vec_load(acc + j), sum));
        }
    }
}

// w: weights, ld_span from span to span and ld_w from row to row
template <int R, int V>
static inline void values_levels(float * acc, int64_t ld_acc, const float * w, int64_t ld_span, int64_t ld_w,
    const minicache_level_rows & v, int n, int64_t i) {
    const float * weights[V];
    minicache_vec zero[V];
    for (int k = 0; k < V; ++k) {
        weights[k] = w + (i + k * MINICACHE_LANES) / MINICACHE_LEVEL_SPAN * ld_span;
        zero[k]    = vec_load(v.zero + i + k * MINICACHE_LANES);
    }
    minicache_vec x[R][V];
    for (int r = 0; r < R; ++r) {
        for (int k = 0; k < V; ++k) {
            x[r][k] = vec_load(acc + r * ld_acc + i + k * MINICACHE_LANES);
        }
    }
    for (int c = 0; c < n; ++c) {
        for (int k = 0; k < V; ++k) {
            const minicache_vec y = vec_sub(vec_load(v.levels + c * v.ld + i + k * MINICACHE_LANES), zero[k]);
            for (int r = 0; r < R; ++r) {
                x[r][k] = vec_fma(vec_set(weights[k][r * ld_w + c]), y, x[r][k]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int k = 0; k < V; ++k) {
            vec_store(acc + r * ld_acc + i + k * MINICACHE_LANES, x[r][k]);
        }
    }
}

template <int R>
static inline void values_levels_rows(
    float * acc, int64_t ld_acc, const float * weights, const minicache_level_rows & v, int n, int64_t d, float * scratch) {
    for (int r = 0; r < R && v.scale; ++r) {
        scale_weights(weights + r * MINICACHE_BLOCK, v, n, d, scratch + r * MINICACHE_LEVEL_BLOCK, acc + r * ld_acc);
    }
    const float * w       = v.scale ? scratch : weights;
    const int64_t ld_span = v.scale ? 4 * MINICACHE_LEVEL_BLOCK : 0;
    const int64_t ld_w    = v.scale ? MINICACHE_LEVEL_BLOCK : MINICACHE_BLOCK;

    int64_t i = 0;
    for (; i + MINICACHE_TILE_VECS * MINICACHE_LANES <= d; i += MINICACHE_TILE_VECS * MINICACHE_LANES) {
        values_levels<R, MINICACHE_TILE_VECS>(acc, ld_acc, w, ld_span, ld_w, v, n, i);
    }
    for (; i < d; i += MINICACHE_LANES) {
        values_levels<R, 1>(acc, ld_acc, w, ld_span, ld_w, v, n, i);
    }
}

// Adds the weighted values to acc [n_rows][ld_acc].
//   weights  [n_rows][MINICACHE_BLOCK], zero behind the n given entries
//   d        a multiple of 16
//   scratch  [ld/32][4][MINICACHE_LEVEL_BLOCK]
static inline void minicache_values_levels(float * acc, int64_t ld_acc, int64_t n_rows, const float * weights,
    const minicache_level_rows & v, int n, int64_t d, float * scratch) {
    for_rows<4>(n_rows, [&](int64_t r, auto R) {
        values_levels_rows<R()>(acc + r * ld_acc, ld_acc, weights + r * MINICACHE_BLOCK, v, n, d, scratch);
    });
}
#endif
