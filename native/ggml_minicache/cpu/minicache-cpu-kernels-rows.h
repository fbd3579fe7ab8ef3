#pragma once

// Scores and values over rows as they lie in memory: float32, float16 or bfloat16, of a multiple of MINICACHE_LANES numbers. See
// minicache-cpu-kernels.h.

#include "minicache-cpu-kernels.h"

// queries of a tile, as many as there are registers for
static const int MINICACHE_SCORE_ROWS = MINICACHE_LANES == 8 ? 2 : 4;

// Products of R queries with MINICACHE_FOLD rows, folded (see minicache-cpu-simd.h), to every LANES/FOLD-th vector of `fold`.
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

// Scores s [n_rows][MINICACHE_BLOCK] of queries q [n_rows][ldq] of d numbers.
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

// Adds the rows, weighted by w [n_rows][MINICACHE_BLOCK], to acc [n_rows][ld_acc].
template <typename T>
static inline void minicache_values_rows(
    float * acc, int64_t ld_acc, int64_t n_rows, const float * w, const minicache_rows & rows, int64_t d) {
    for_rows<4>(
        n_rows, [&](int64_t r, auto R) { values_rows<T, R()>(acc + r * ld_acc, ld_acc, w + r * MINICACHE_BLOCK, rows, d); });
}
