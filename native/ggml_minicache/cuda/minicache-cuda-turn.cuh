#pragma once

// One query as the coded entries of a base see it.

#include "minicache-cuda-attn.cuh"
#include "minicache-turn.h"

// The whole block of 4 warps: computes the cosines, then the sines, of the angles at base b. A barrier has to follow.
//   angles [2*n_pair]
static __device__ __noinline__ void minicache_turn_angles(const minicache_cuda_attn & a, int32_t b, float * angles) {
    const int n = minicache_turn_pairs(a.shape);
    for (int i = threadIdx.y * WARP_SIZE + threadIdx.x; i < n; i += MINICACHE_ATTN_WARPS * WARP_SIZE) {
        minicache_turn_angle(b, a.freq()[i], angles + i, angles + n + i);
    }
}

// The whole block: computes (R(-b)x)ᵀD for one query, divided by its largest coefficient, which goes to out_scale; coefficients
// are at their places (minicache-code-unit.h). Has barriers before, within and after.
//   head     the KV head's K
//   x        [d_k]
//   scratch  [d_k], followed by the angles of minicache_turn_angles()
static __device__ __noinline__ void minicache_turn_query(const minicache_cuda_attn & a, const minicache_cuda_head & head,
    const float * x, float * scratch, half * out, float * out_scale) {
    const int THREADS = MINICACHE_ATTN_WARPS * WARP_SIZE;
    const int thread  = threadIdx.y * WARP_SIZE + threadIdx.x;
    const int n_pair  = minicache_turn_pairs(a.shape);

    const float * cosines = scratch + a.dims.d_k;

    __shared__ float tops[MINICACHE_ATTN_WARPS];

    __syncthreads();
    for (int i = thread; i < a.dims.d_k; i += THREADS) {
        scratch[i] = minicache_turned(a.shape.rope, n_pair, cosines, cosines + n_pair, 1, x, i);
    }
    __syncthreads();

    float z[MINICACHE_ATTN_CODE / (MINICACHE_ATTN_WARPS * WARP_SIZE)];
    float top = 0.0f;
#pragma unroll
    for (int j = 0; j < MINICACHE_ATTN_CODE / (MINICACHE_ATTN_WARPS * WARP_SIZE); ++j) {
        const int c = j * THREADS + thread;
        z[j]        = 0.0f;
        if (c < head.r) {
            for (int i = 0; i < a.dims.d_k; ++i) {
                z[j] += scratch[i] * __half2float(head.decoder[i * head.r + c]);
            }
        }
        top = fmaxf(top, fabsf(z[j]));
    }
    top = warp_reduce_max(top);
    if (threadIdx.x == 0) {
        tops[threadIdx.y] = top;
    }
    __syncthreads();
    for (int w = 0; w < MINICACHE_ATTN_WARPS; ++w) {
        top = fmaxf(top, tops[w]);
    }
#pragma unroll
    for (int j = 0; j < MINICACHE_ATTN_CODE / (MINICACHE_ATTN_WARPS * WARP_SIZE); ++j) {
        const int c = j * THREADS + thread;
        if (c < head.r) {
            out[minicache_code_place(c)] = __float2half(top > 0.0f ? z[j] / top : 0.0f);
        }
    }
    if (thread == 0) {
        *out_scale = top;
    }
}
