#pragma once

// The inner loops of the attention, for up to MINICACHE_BLOCK entries at a time. Rows of float32 scratch are padded with zeros
// to a multiple of MINICACHE_PAD.
//
//   scores   s[r][c] = q[r]·k[c]
//   values   acc[r] += Σ_c w[r][c]*v[c]
//
// Three forms of each: over rows as they lie in memory where they are floats, for few queries; over levels, integers with a scale
// for each 32 of them (see minicache-cpu-rows.h), for few queries, and scores for any number; over float32 columns in scratch, a
// matrix product, where the queries are many enough to pay for what brings the entries into that form.

#include "minicache-cpu-rows.h"
#include "minicache-cpu-simd.h"

#include <cmath>
#include <type_traits>

static_assert(MINICACHE_BLOCK % MINICACHE_LANES == 0, "");

// fn(R), R as a type, for n of 1 to MAX_R
template <int MAX_R, typename F>
static inline void for_count(int64_t n, const F & fn) {
    if (n == MAX_R) {
        fn(std::integral_constant<int, MAX_R>());
    } else if constexpr (MAX_R > 1) {
        for_count<MAX_R - 1>(n, fn);
    }
}

// fn(r, R) for the rows r, r + 1, ... r + R - 1: MAX_R at a time, or less and in equal parts, as few at a time are slow
template <int MAX_R, typename F>
static inline void for_rows(int64_t n_rows, const F & fn) {
    int64_t n_part = (n_rows + MAX_R - 1) / MAX_R;
    for (int64_t r = 0; n_part > 0; --n_part) {
        const int64_t n = (n_rows - r + n_part - 1) / n_part;
        for_count<MAX_R>(n, [&](auto R) { fn(r, R); });
        r += n;
    }
}

//
// matrix products
//

// rows and vectors of a tile: its sums and what they are made of fit the registers
static const int MINICACHE_TILE_ROWS = 6;
static const int MINICACHE_TILE_VECS = MINICACHE_LANES == 8 ? 2 : 4;

template <int R, int V, typename T>
static inline void accumulate_tile(
    float * acc, int64_t ld_acc, const float * w, int64_t ldw, const T * v, int64_t ldv, int64_t n) {
    minicache_vec x[R][V];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < V; ++i) {
            x[r][i] = vec_load(acc + r * ld_acc + i * MINICACHE_LANES);
        }
    }
    for (int64_t c = 0; c < n; ++c) {
        minicache_vec y[V];
        for (int i = 0; i < V; ++i) {
            y[i] = vec_load(v + c * ldv + i * MINICACHE_LANES);
        }
        for (int r = 0; r < R; ++r) {
            const minicache_vec z = vec_set(w[r * ldw + c]);
            for (int i = 0; i < V; ++i) {
                x[r][i] = vec_fma(z, y[i], x[r][i]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < V; ++i) {
            vec_store(acc + r * ld_acc + i * MINICACHE_LANES, x[r][i]);
        }
    }
}

template <int V, typename T>
static inline void accumulate_columns(
    float * acc, int64_t ld_acc, int64_t n_rows, const float * w, int64_t ldw, const T * v, int64_t ldv, int64_t n) {
    for_rows<MINICACHE_TILE_ROWS>(
        n_rows, [&](int64_t r, auto R) { accumulate_tile<R(), V>(acc + r * ld_acc, ld_acc, w + r * ldw, ldw, v, ldv, n); });
}

// acc [n_rows][ld_acc] += w [n_rows][ldw] times v [n][d], of float32 or float16, d a multiple of MINICACHE_LANES
template <typename T>
static inline void minicache_accumulate(
    float * acc, int64_t ld_acc, int64_t n_rows, const float * w, int64_t ldw, const T * v, int64_t n, int64_t d) {
    int64_t i = 0;
    for (; i + MINICACHE_TILE_VECS * MINICACHE_LANES <= d; i += MINICACHE_TILE_VECS * MINICACHE_LANES) {
        accumulate_columns<MINICACHE_TILE_VECS>(acc + i, ld_acc, n_rows, w, ldw, v + i, d, n);
    }
    for (; i + 2 * MINICACHE_LANES <= d; i += 2 * MINICACHE_LANES) {
        accumulate_columns<2>(acc + i, ld_acc, n_rows, w, ldw, v + i, d, n);
    }
    if (i < d) {
        accumulate_columns<1>(acc + i, ld_acc, n_rows, w, ldw, v + i, d, n);
    }
}

// k [n][d] to columns [d][MINICACHE_BLOCK]; k has room for whole vectors of rows, d is a multiple of MINICACHE_LANES
static inline void minicache_columns(const float * k, int64_t n, int64_t d, float * columns) {
    for (int64_t c = 0; c < n; c += MINICACHE_LANES) {
        for (int64_t i = 0; i < d; i += MINICACHE_LANES) {
            minicache_vec x[MINICACHE_LANES];
            for (int j = 0; j < MINICACHE_LANES; ++j) {
                x[j] = vec_load(k + (c + j) * d + i);
            }
            vec_transpose(x);
            for (int j = 0; j < MINICACHE_LANES; ++j) {
                vec_store(columns + (i + j) * MINICACHE_BLOCK + c, x[j]);
            }
        }
    }
}

// q [n_rows][d], columns [d][MINICACHE_BLOCK], s [n_rows][MINICACHE_BLOCK]
static inline void minicache_scores_columns(const float * q, int64_t n_rows, const float * columns, int64_t d, float * s) {
    memset(s, 0, n_rows * MINICACHE_BLOCK * sizeof(float));
    minicache_accumulate(s, MINICACHE_BLOCK, n_rows, q, d, columns, d, MINICACHE_BLOCK);
}

//
// rows as they lie in memory: float32, float16 or bfloat16, of a multiple of MINICACHE_LANES numbers
//

// queries of a tile: as many as there are registers for
static const int MINICACHE_SCORE_ROWS = MINICACHE_LANES == 8 ? 2 : 4;

// R queries times MINICACHE_FOLD rows, folded, to every LANES/FOLD vectors of `fold`
template <typename T, int R>
static inline void scores_rows_at(
    const float * q, int64_t ldq, const minicache_rows & rows, int c, int64_t d, minicache_vec * fold) {
    static const int C = MINICACHE_FOLD;

    const T * row[C];
    for (int k = 0; k < C; ++k) {
        row[k] = (const T *) rows.at[c + k];
        minicache_fetch_ahead(row[k], rows.ahead, d * (int64_t) sizeof(T));
    }
    minicache_vec acc[R][C];
    for (int r = 0; r < R; ++r) {
        for (int k = 0; k < C; ++k) {
            acc[r][k] = vec_zero();
        }
    }
    for (int64_t i = 0; i < d; i += MINICACHE_LANES) {
        minicache_vec x[C];
        for (int k = 0; k < C; ++k) {
            x[k] = vec_load(row[k] + i);
        }
        for (int r = 0; r < R; ++r) {
            const minicache_vec y = vec_keep(vec_load(q + r * ldq + i));
            for (int k = 0; k < C; ++k) {
                acc[r][k] = vec_fma(y, x[k], acc[r][k]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        fold[r * (MINICACHE_LANES / C)] = vec_fold(acc[r]);
    }
}

template <typename T, int R>
static inline void scores_rows(const float * q, int64_t ldq, const minicache_rows & rows, int64_t d, float * s) {
    static const int N = MINICACHE_LANES / MINICACHE_FOLD;

    for (int c = 0; c < rows.n; c += MINICACHE_LANES) {
        minicache_vec folds[R * N];
        for (int j = 0; j < N; ++j) {
            scores_rows_at<T, R>(q, ldq, rows, c + j * MINICACHE_FOLD, d, folds + j);
        }
        for (int r = 0; r < R; ++r) {
            vec_store(s + r * MINICACHE_BLOCK + c, vec_sums(folds + r * N));
        }
    }
}

// q [n_rows][ldq], s [n_rows][MINICACHE_BLOCK]
template <typename T>
static inline void minicache_scores_rows(
    const float * q, int64_t ldq, int64_t n_rows, const minicache_rows & rows, int64_t d, float * s) {
    for_rows<MINICACHE_SCORE_ROWS>(
        n_rows, [&](int64_t r, auto R) { scores_rows<T, R()>(q + r * ldq, ldq, rows, d, s + r * MINICACHE_BLOCK); });
}

template <typename T, int R, int V>
static inline void values_rows_at(float * acc, int64_t ld_acc, const float * w, const minicache_rows & rows, int64_t i) {
    minicache_vec x[R][V];
    for (int r = 0; r < R; ++r) {
        for (int k = 0; k < V; ++k) {
            x[r][k] = vec_load(acc + r * ld_acc + i + k * MINICACHE_LANES);
        }
    }
    for (int c = 0; c < rows.n; ++c) {
        const T * row = (const T *) rows.at[c] + i;
        minicache_fetch_ahead(row, rows.ahead, V * MINICACHE_LANES * (int64_t) sizeof(T));

        minicache_vec y[V];
        for (int k = 0; k < V; ++k) {
            y[k] = vec_load(row + k * MINICACHE_LANES);
        }
        for (int r = 0; r < R; ++r) {
            const minicache_vec z = vec_set(w[r * MINICACHE_BLOCK + c]);
            for (int k = 0; k < V; ++k) {
                x[r][k] = vec_fma(z, y[k], x[r][k]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int k = 0; k < V; ++k) {
            vec_store(acc + r * ld_acc + i + k * MINICACHE_LANES, x[r][k]);
        }
    }
}

template <typename T, int R>
static inline void values_rows(float * acc, int64_t ld_acc, const float * w, const minicache_rows & rows, int64_t d) {
    int64_t i = 0;
    for (; i + MINICACHE_TILE_VECS * MINICACHE_LANES <= d; i += MINICACHE_TILE_VECS * MINICACHE_LANES) {
        values_rows_at<T, R, MINICACHE_TILE_VECS>(acc, ld_acc, w, rows, i);
    }
    for (; i < d; i += MINICACHE_LANES) {
        values_rows_at<T, R, 1>(acc, ld_acc, w, rows, i);
    }
}

// acc [n_rows][ld_acc], w [n_rows][MINICACHE_BLOCK]
template <typename T>
static inline void minicache_values_rows(
    float * acc, int64_t ld_acc, int64_t n_rows, const float * w, const minicache_rows & rows, int64_t d) {
    for_rows<4>(
        n_rows, [&](int64_t r, auto R) { values_rows<T, R()>(acc + r * ld_acc, ld_acc, w + r * MINICACHE_BLOCK, rows, d); });
}

//
// levels
//

#if MINICACHE_LEVELS
// Queries as integers of 24 bits, as exact as float32: x + rest/256, with x of 16 bits and the rest of 8, in the words that
// ivec_dot() takes. 8 bits in all, as llama.cpp's own products with quantized rows have, would cost an error of 1/127 of the
// largest number.
struct minicache_level_queries {
    // words of a group of levels: bytes give a word for each four of them; pairs of 16 bits take the even and the odd apart
#if defined(MINICACHE_BYTE_DOT)
    static const int64_t REST_WORDS = 8;
#else
    static const int64_t REST_WORDS = 16;
#endif
    static const int64_t WHOLE_WORDS = 16;  // 8 of upper and 8 of lower bytes, or 8 even and 8 odd

    int64_t   n_group;
    int32_t * whole;      // [n_rows][n_group][WHOLE_WORDS]
    int32_t * rest;       // [n_rows][n_group][REST_WORDS]
    int32_t * bias;       // [n_rows][n_group]: -Σ zero*x
    int32_t * rest_bias;  // [n_rows][n_group]: -Σ zero*rest
    float *   sum;        // [n_rows][n_group]: Σ x + rest/256
    float *   unit;       // [n_rows][n_group], all the same for levels with scales

    static int64_t n_word(int64_t n_rows, int64_t ld) {
        return n_rows * (ld / MINICACHE_LEVEL_GROUP) * (WHOLE_WORDS + REST_WORDS + 4);
    }

    minicache_level_queries(float * scratch, int64_t n_rows, int64_t ld) :
        n_group(ld / MINICACHE_LEVEL_GROUP), whole((int32_t *) scratch), rest(whole + n_rows * n_group * WHOLE_WORDS),
        bias(rest + n_rows * n_group * REST_WORDS), rest_bias(bias + n_rows * n_group),
        sum((float *) (rest_bias + n_rows * n_group)), unit(sum + n_rows * n_group) {}

    // the rows from r on
    minicache_level_queries from(int64_t r) const {
        minicache_level_queries x = *this;
        x.whole += r * n_group * WHOLE_WORDS;
        x.rest += r * n_group * REST_WORDS;
        x.bias += r * n_group;
        x.rest_bias += r * n_group;
        x.sum += r * n_group;
        x.unit += r * n_group;
        return x;
    }

    // query r from n floats, n up to 32*n_group
    //   by_group: a unit for each group of its own; for levels without scales, whose factors may differ much
    void set(int64_t r, const float * q, int64_t n, const float * zero, bool by_group) {
        float last[MINICACHE_LEVEL_GROUP] = {};  // of the numbers, where they end within a group, and of zeros behind them
        if (n % MINICACHE_LEVEL_GROUP != 0) {
            memcpy(last, q + n - n % MINICACHE_LEVEL_GROUP, sizeof(float) * (n % MINICACHE_LEVEL_GROUP));
        }
        const auto group = [&](int64_t at) { return at + MINICACHE_LEVEL_GROUP <= n ? q + at : at < n ? last : zeros(); };

        float top = 0.0f;
        for (int64_t at = 0; at < n && !by_group; at += MINICACHE_LEVEL_GROUP) {
            const float x = largest(group(at));
            top           = x > top ? x : top;
        }
        for (int64_t g = 0; g < n_group; ++g) {
            const int64_t at = g * MINICACHE_LEVEL_GROUP;
            set_group(r * n_group + g, group(at), by_group ? largest(group(at)) : top, zero + at);
        }
    }

  private:
    static const int N = MINICACHE_LEVEL_GROUP / MINICACHE_LANES;  // vectors of a group

    static const float * zeros() {
        static const float x[MINICACHE_LEVEL_GROUP] = {};
        return x;
    }

    // absolute value, infinite if there is one that is not finite
    static float largest(const float * q) {
        // as integers, absolute values are in the same order, with infinity and NaN at the end
        minicache_ivec all = ivec_zero();
        for (int k = 0; k < N; ++k) {
            all = ivec_max(all, ivec_and(ivec_load(q + k * MINICACHE_LANES), ivec_set(0x7FFFFFFF)));
        }
        const int32_t top = ivec_top(all);
        float         x;
        memcpy(&x, &top, sizeof(x));
        return top < 0x7F800000 ? x : INFINITY;
    }

    // group i of all
    void set_group(int64_t i, const float * q, float top, const float * zero) {
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
        // half of an odd number is the next group of bits' to keep
        const int32_t twice = ivec_sum(twice_x);
        const int32_t odd   = twice % 2;
        bias[i]             = -(twice - odd) / 2;
        rest_bias[i]        = -(ivec_sum(twice_y) + 256 * odd) / 2;
        sum[i]              = vec_sum(total);
#if defined(MINICACHE_BYTE_DOT)
        auto * high = (int8_t *) (whole + i * WHOLE_WORDS);
        auto * low  = high + MINICACHE_LEVEL_GROUP;
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
        int32_t all[MINICACHE_LEVEL_GROUP];
        int16_t pairs[2][MINICACHE_LEVEL_GROUP / 2];
        for (int k = 0; k < N; ++k) {
            ivec_store(all + k * MINICACHE_LANES, x[k]);
        }
        for (int i = 0; i < MINICACHE_LEVEL_GROUP / 2; ++i) {
            pairs[0][i] = (int16_t) all[2 * i];
            pairs[1][i] = (int16_t) all[2 * i + 1];
        }
        memcpy(words, pairs, sizeof(pairs));
    }
#endif
};

// the first d of levels [MINICACHE_LEVEL_BLOCK][ld] to words [d/4][MINICACHE_LEVEL_BLOCK], whole vectors of words
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

// acc += a group of levels times factors [R][ld], 8 words of each for bytes, 16 for pairs
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

// of one vector of entries
template <int R>
static inline void scores_levels(
    const minicache_level_queries & q, int64_t n, const int32_t * words, const minicache_level_rows & k, int c, float * s) {
    const int64_t ld       = q.n_group;
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

// queries of d numbers, words of the keys, s [n_rows][MINICACHE_BLOCK]; entries behind the n of the last vector get any score
static inline void minicache_scores_levels(const minicache_level_queries & q, int64_t n_rows, int64_t d, const int32_t * words,
    const minicache_level_rows & k, int n, float * s) {
    const int64_t n_group = (d + MINICACHE_LEVEL_GROUP - 1) / MINICACHE_LEVEL_GROUP;
    for_rows<4>(n_rows, [&](int64_t r, auto R) {
        for (int c = 0; c < n; c += MINICACHE_LANES) {
            scores_levels<R()>(q.from(r), n_group, words, k, c, s + r * MINICACHE_BLOCK);
        }
    });
}

// the weights of one row as each group of levels counts them, w [n_group][4][MINICACHE_LEVEL_BLOCK]; what minima give goes to acc
static inline void scale_weights(
    const float * weights, const minicache_level_rows & v, int n, int64_t d, float * w, float * acc) {
    for (int64_t i = 0; i < d; i += MINICACHE_LEVEL_GROUP) {
        const int64_t at  = i / MINICACHE_LEVEL_GROUP * MINICACHE_LEVEL_BLOCK;
        minicache_vec min = vec_zero();
        for (int c = 0; c < n; c += MINICACHE_LANES) {
            const minicache_vec x = vec_load(weights + c);
            vec_store(w + 4 * at + c, vec_mul(x, vec_load(v.scale + at + c)));
            min = v.min ? vec_fma(x, vec_load(v.min + at + c), min) : min;
        }
        const minicache_vec sum = vec_set(v.min ? vec_sum(min) : 0.0f);
        for (int64_t j = i; v.min && j < i + MINICACHE_LEVEL_GROUP && j < d; j += MINICACHE_LANES) {
            vec_store(acc + j, vec_add(vec_load(acc + j), sum));
        }
    }
}

// w: weights of each group [ld_group] and row [ld_w]
template <int R, int V>
static inline void values_levels(float * acc, int64_t ld_acc, const float * w, int64_t ld_group, int64_t ld_w,
    const minicache_level_rows & v, int n, int64_t i) {
    const float * weights[V];
    minicache_vec zero[V];
    for (int k = 0; k < V; ++k) {
        weights[k] = w + (i + k * MINICACHE_LANES) / MINICACHE_LEVEL_GROUP * ld_group;
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
    const float * w        = v.scale ? scratch : weights;
    const int64_t ld_group = v.scale ? 4 * MINICACHE_LEVEL_BLOCK : 0;
    const int64_t ld_w     = v.scale ? MINICACHE_LEVEL_BLOCK : MINICACHE_BLOCK;

    int64_t i = 0;
    for (; i + MINICACHE_TILE_VECS * MINICACHE_LANES <= d; i += MINICACHE_TILE_VECS * MINICACHE_LANES) {
        values_levels<R, MINICACHE_TILE_VECS>(acc, ld_acc, w, ld_group, ld_w, v, n, i);
    }
    for (; i < d; i += MINICACHE_LANES) {
        values_levels<R, 1>(acc, ld_acc, w, ld_group, ld_w, v, n, i);
    }
}

// acc [n_rows][ld_acc], weights [n_rows][MINICACHE_BLOCK], zero behind the n; d is a multiple of 16;
// scratch [ld/32][4][MINICACHE_LEVEL_BLOCK]
static inline void minicache_values_levels(float * acc, int64_t ld_acc, int64_t n_rows, const float * weights,
    const minicache_level_rows & v, int n, int64_t d, float * scratch) {
    for_rows<4>(n_rows, [&](int64_t r, auto R) {
        values_levels_rows<R()>(acc + r * ld_acc, ld_acc, weights + r * MINICACHE_BLOCK, v, n, d, scratch);
    });
}
#endif
