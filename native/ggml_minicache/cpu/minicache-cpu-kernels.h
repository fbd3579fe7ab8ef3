#pragma once

// The inner loops of the attention and of encoding, for up to MINICACHE_BLOCK entries at a time. Rows of float32 scratch are
// padded with zeros to a multiple of MINICACHE_PAD.
//
//   scores   s[r][c] = q[r]·k[c]
//   values   acc[r] += Σ_c w[r][c]*v[c]
//
// There are three forms of each:
//   over rows of floats as they lie in memory, for few queries: minicache-cpu-kernels-rows.h
//   over levels, for few queries: minicache-cpu-kernels-levels.h
//   over float32 columns in scratch, a matrix product, where there are enough queries to pay for bringing the entries into
//   that form: this file

#include "minicache-cpu-rows.h"
#include "minicache-cpu-simd.h"

#include <cmath>
#include <type_traits>

static_assert(MINICACHE_BLOCK % MINICACHE_LANES == 0, "");

// Calls fn(R), with n as the type R, for n from 1 to MAX_R.
template <int MAX_R, typename F>
static inline void for_count(int64_t n, const F & fn) {
    if (n == MAX_R) {
        fn(std::integral_constant<int, MAX_R>());
    } else if constexpr (MAX_R > 1) {
        for_count<MAX_R - 1>(n, fn);
    }
}

// Calls fn(r, R) for the rows r to r + R - 1, until all rows are done: MAX_R rows at a time, or fewer in nearly equal parts,
// because one or two rows at a time are slow.
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

// rows and vectors of a tile, so that its sums and what is added to them fit into the registers
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

// acc [n_rows][ld_acc] += w [n_rows][ldw] times v [n][d]. v is float32 or float16, and d a multiple of MINICACHE_LANES.
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

// Transposes k [n][d] to columns [d][MINICACHE_BLOCK]. k has room for whole vectors of rows, and d is a multiple of
// MINICACHE_LANES.
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

// Scores s [n_rows][MINICACHE_BLOCK] of queries q [n_rows][d] with columns [d][MINICACHE_BLOCK].
static inline void minicache_scores_columns(const float * q, int64_t n_rows, const float * columns, int64_t d, float * s) {
    memset(s, 0, n_rows * MINICACHE_BLOCK * sizeof(float));
    minicache_accumulate(s, MINICACHE_BLOCK, n_rows, q, d, columns, d, MINICACHE_BLOCK);
}
