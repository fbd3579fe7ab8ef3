#pragma once

// What a block of threads does with one tile of cells: scores on tensor cores, and the softmax. These are functions and not
// members of the block's state, because that state has to stay in registers, and because each of them should exist in one copy
// only.

#include "minicache-cuda-attn.cuh"
#include "mma.cuh"

// what all warps share about the queries
template <int ROWS>
struct minicache_attn_rows {
    float max_score[ROWS];   // maximum of the scores so far
    float sum[ROWS];         // sum of the weights, relative to max_score
    float max_value[ROWS];   // maximum of the scores plus the logarithms of V's magnitudes
    float rescale[ROWS];     // what the last tile multiplies the accumulators by
    float scale[ROWS];       // what the queries were divided by
    float scale_code[ROWS];  // the same for coded entries
    int   head[ROWS];
    int   token[ROWS];
};

// Computes the scores of a tile's entries, or, if bases are given, of those entries that have base b, without the op's scale: the
// product of keys [tile][ld_k] and queries [ROWS][ld_q] over n numbers.
template <int ROWS>
static __device__ __noinline__ void minicache_attn_multiply(const half * keys, int ld_k, int tile, const half * queries, int ld_q,
    int n, const float * scale, const int32_t * bases, int b, float * scores) {
    typedef ggml_cuda_mma::tile<16, 8, float> matrix_c;

    for (int m = threadIdx.y; m < tile / 16; m += MINICACHE_ATTN_WARPS) {
        matrix_c c[ROWS / 8];
#pragma unroll 2
        for (int i = 0; i < n; i += 16) {
            ggml_cuda_mma::tile<16, 8, half2> x;
            ggml_cuda_mma::load_ldmatrix(x, (const half2 *) (keys + m * 16 * ld_k + i), ld_k / 2);
#pragma unroll
            for (int j = 0; j < ROWS / 8; ++j) {
                ggml_cuda_mma::tile<8, 8, half2> y;
                ggml_cuda_mma::load_ldmatrix(y, (const half2 *) (queries + j * 8 * ld_q + i), ld_q / 2);
                ggml_cuda_mma::mma(c[j], x, y);
            }
        }
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j) {
#pragma unroll
            for (int l = 0; l < matrix_c::ne; ++l) {
                const int at = m * 16 + matrix_c::get_i(l);
                const int r  = j * 8 + matrix_c::get_j(l);
                if (!bases || bases[at] == b) {
                    scores[at * (ROWS + 1) + r] = c[j].x[l] * scale[r];
                }
            }
        }
    }
}

// Adds the tile to the softmax, and turns its scores into weights, magnitudes of V included.
template <int ROWS>
static __device__ __noinline__ void minicache_attn_soften(const minicache_cuda_attn & a, const minicache_attn_schedule & schedule,
    minicache_attn_rows<ROWS> & rows, int stream, int n_row, const int32_t * cell, const float * mag_k, const float * log_v,
    const float * scores, half * weights) {
    for (int r = threadIdx.y; r < ROWS; r += MINICACHE_ATTN_WARPS) {
        float x[MINICACHE_ATTN_TILE / WARP_SIZE];
        float top_score = rows.max_score[r];
        float top_value = rows.max_value[r];

        const float slope = r < n_row ? a.slope(rows.head[r]) : 0.0f;
#pragma unroll
        for (int i = 0; i < MINICACHE_ATTN_TILE / WARP_SIZE; ++i) {
            const int c = i * WARP_SIZE + threadIdx.x;
            x[i]        = -INFINITY;
            if (c < schedule.tile && cell[c] >= 0 && r < n_row) {
                const float bias = a.bias(stream, rows.token[r], cell[c]);
                if (bias != -INFINITY) {
                    x[i]      = a.score(scores[c * (ROWS + 1) + r] * mag_k[c], slope * bias);
                    top_score = fmaxf(top_score, x[i]);
                    top_value = fmaxf(top_value, x[i] + log_v[c]);
                }
            }
        }
        top_score = warp_reduce_max(top_score);
        top_value = warp_reduce_max(top_value);

        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < MINICACHE_ATTN_TILE / WARP_SIZE; ++i) {
            const int c = i * WARP_SIZE + threadIdx.x;
            if (c < schedule.tile) {
                const bool some = x[i] != -INFINITY;
                sum += some ? expf(x[i] - top_score) : 0.0f;
                weights[r * schedule.ld_p + c] =
                    __float2half(some && top_value != -INFINITY ? expf(x[i] + log_v[c] - top_value) : 0.0f);
            }
        }
        sum = warp_reduce_sum(sum);
        if (threadIdx.x == 0) {
            const float before = rows.max_score[r] == -INFINITY ? 0.0f : expf(rows.max_score[r] - top_score);
            rows.rescale[r]    = rows.max_value[r] == -INFINITY ? 0.0f : expf(rows.max_value[r] - top_value);
            rows.sum[r]        = rows.sum[r] * before + sum;
            rows.max_score[r]  = top_score;
            rows.max_value[r]  = top_value;
        }
    }
    __syncthreads();
}
