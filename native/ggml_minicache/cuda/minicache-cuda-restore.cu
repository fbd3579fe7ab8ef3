#include "minicache-cuda-launch.cuh"
#include "minicache-cuda-turn.cuh"
#include "mma.cuh"

// Restores K and V of all cells as one layer has them, in f16, for ggml-cuda's own attention kernels. A block of 4 warps takes
// a tile of cells of one stream and KV head. Codes are multiplied by the decoder on tensor cores.

using ggml_cuda_mma::load_generic;
using ggml_cuda_mma::load_ldmatrix;
using ggml_cuda_mma::mma;
using ggml_cuda_mma::tile;

static const int CELLS = 32;

struct restore_shape {
    int32_t ld_code;  // numbers
    int32_t ld_row;   // numbers, odd: threads read along both dimensions
    int32_t raw;      // bytes
    int32_t at_row;   // offsets in bytes
    int32_t at_raw;
    int32_t at_angles;
    int32_t shared;
};

static restore_shape restore_shape_of(const minicache_attn_dims & d) {
    restore_shape s = {};
    if (d.coded) {
        s.ld_code   = minicache_max(d.r_k, d.r_v) + 8;
        s.ld_row    = minicache_max(d.d_k, d.d_v) + 1;
        s.raw       = minicache_raw_stride(minicache_max(d.bytes_k, d.bytes_v), 1);
        s.at_row    = 2 * CELLS * s.ld_code;
        s.at_raw    = s.at_row + 4 * CELLS * s.ld_row;
        s.at_angles = s.at_raw + CELLS * s.raw;
        s.shared    = s.at_angles + 4 * d.d_k;
    }
    return s;
}

// One warp: restores a merged entry's row, times its magnitude.
static __device__ void restore_direction(const char * row, int32_t type, int d, float mag, half * out) {
    for (int i = 4 * threadIdx.x; i < d; i += 4 * WARP_SIZE) {
        half2 x[2];
        minicache_read_4(row, type, i, x);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const float2 y = __half22float2(x[j]);

            ((half2 *) (out + i))[j] = __floats2half2_rn(mag * y.x, mag * y.y);
        }
    }
}

// The whole block: multiplies the code rows of the tile's coded cells by the decoder, to [CELLS][ld_row] at shape.at_row, without
// magnitudes.
static __device__ void decode_tile(const restore_shape & shape, const minicache_cuda_rows & from,
    const minicache_cuda_head & head, int d, int stream, int cell_0, const bool * coded, char * shared) {
    half *  code = (half *) shared;
    float * out  = (float *) (shared + shape.at_row);
    char *  raw  = shared + shape.at_raw;

    for (int c = threadIdx.y; c < CELLS; c += MINICACHE_ATTN_WARPS) {
        if (coded[c]) {
            minicache_stage_row(head.code(from, stream, cell_0 + c), head.bytes, raw + c * shape.raw);
        }
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    for (int u = threadIdx.y; u < head.r / MINICACHE_CODE_UNIT; u += MINICACHE_ATTN_WARPS) {
        const int c = threadIdx.x;
        half2     x[MINICACHE_CODE_UNIT / 2];
#pragma unroll
        for (int j = 0; j < MINICACHE_CODE_UNIT / 2; ++j) {
            x[j] = __floats2half2_rn(0.0f, 0.0f);
        }
        if (coded[c]) {
            const int shift = (uintptr_t) head.code(from, stream, cell_0 + c) & 2;
            minicache_read_unit(raw + c * shape.raw + shift, minicache_code_unit_at(head.layout, u), x);
        }
        half * to = code + c * shape.ld_code + u * MINICACHE_CODE_UNIT;
#pragma unroll
        for (int j = 0; j < MINICACHE_CODE_UNIT / 2; ++j) {
            to[j]     = __low2half(x[j]);  // from their places to the decoder's order
            to[j + 8] = __high2half(x[j]);
        }
    }
    __syncthreads();
    for (int m = threadIdx.y; m < d / 16; m += MINICACHE_ATTN_WARPS) {
        tile<16, 8, float> sum[CELLS / 8];
        for (int i = 0; i < head.r; i += 16) {
            tile<16, 8, half2> x;
            load_generic(x, (const half2 *) (head.decoder + m * 16 * head.r + i), head.r / 2);
#pragma unroll
            for (int j = 0; j < CELLS / 8; ++j) {
                tile<8, 8, half2> y;
                load_ldmatrix(y, (const half2 *) (code + j * 8 * shape.ld_code + i), shape.ld_code / 2);
                mma(sum[j], x, y);
            }
        }
#pragma unroll
        for (int j = 0; j < CELLS / 8; ++j) {
#pragma unroll
            for (int l = 0; l < 4; ++l) {
                out[(j * 8 + tile<16, 8, float>::get_j(l)) * shape.ld_row + m * 16 + tile<16, 8, float>::get_i(l)] = sum[j].x[l];
            }
        }
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(MINICACHE_ATTN_WARPS * WARP_SIZE)
    restore_kernel(const MINICACHE_PARAMETER minicache_cuda_attn a, const restore_shape shape, half * k, half * v) {
    MINICACHE_SHARED(shared);

    __shared__ bool     coded[CELLS];
    __shared__ int32_t  base[CELLS];
    __shared__ uint32_t waiting;

    const int cell_0  = blockIdx.x * CELLS;
    const int head_kv = blockIdx.y;
    const int stream  = blockIdx.z;
    const int thread  = threadIdx.y * WARP_SIZE + threadIdx.x;

    const int64_t first = ((int64_t) stream * a.dims.n_head_kv + head_kv) * a.dims.n_kv;

    if (thread < CELLS) {
        const int cell = cell_0 + thread;
        coded[thread]  = a.dims.coded && cell < a.dims.n_kv && a.state(stream, cell) == GGML_MINICACHE_CELL_MERGED;
        base[thread]   = coded[thread] ? a.base(stream, cell) : 0;
    }
    __syncthreads();

    for (int c = threadIdx.y; c < CELLS && cell_0 + c < a.dims.n_kv; c += MINICACHE_ATTN_WARPS) {
        const int     cell  = cell_0 + c;
        const int32_t state = a.state(stream, cell);
        half *        out_k = k + (first + cell) * a.dims.d_k;
        half *        out_v = v + (first + cell) * a.dims.d_v;
        if (state == GGML_MINICACHE_CELL_EMPTY) {
            minicache_read_row(nullptr, GGML_TYPE_F16, a.dims.d_k, out_k);
            minicache_read_row(nullptr, GGML_TYPE_F16, a.dims.d_v, out_v);
        } else if (state != GGML_MINICACHE_CELL_MERGED) {
            a.read_exact(stream, head_kv, cell, out_k, out_v);
        } else if (!a.dims.coded) {
            restore_direction(a.k.row(stream, head_kv, cell), a.k.type, a.dims.d_k, a.magnitude(0, stream, head_kv, cell), out_k);
            restore_direction(a.v.row(stream, head_kv, cell), a.v.type, a.dims.d_v, a.magnitude(2, stream, head_kv, cell), out_v);
        }
    }
    if (!a.dims.coded) {
        return;
    }
    const float * rows   = (const float *) (shared + shape.at_row);
    float *       angles = (float *) (shared + shape.at_angles);
    const int     n_pair = minicache_turn_pairs(a.shape);

    const minicache_cuda_head head_k = a.head_k(head_kv);
    decode_tile(shape, a.k, head_k, a.dims.d_k, stream, cell_0, coded, shared);

    // K is turned forward to its position, one base after the other
    uint32_t done = 0;
    while (true) {
        if (threadIdx.y == 0) {
            const uint32_t bits = __ballot_sync(0xFFFFFFFF, coded[threadIdx.x] && !(done >> threadIdx.x & 1));
            if (threadIdx.x == 0) {
                waiting = bits;
            }
        }
        __syncthreads();
        const uint32_t left = waiting;
        if (left == 0) {
            break;
        }
        const int32_t b = base[__ffs(left) - 1];
        minicache_turn_angles(a, b, angles);
        __syncthreads();
        for (int c = 0; c < CELLS; ++c) {
            if (!(left >> c & 1) || base[c] != b) {
                continue;
            }
            done |= 1u << c;
            if (c % MINICACHE_ATTN_WARPS != (int) threadIdx.y) {
                continue;
            }
            const int   cell = cell_0 + c;
            const float mag  = expf(a.log_magnitude(0, head_kv, head_k.code(a.k, stream, cell)));
            for (int i = threadIdx.x; i < a.dims.d_k; i += WARP_SIZE) {
                const float y = minicache_turned(a.shape.rope, n_pair, angles, angles + n_pair, 0, rows + c * shape.ld_row, i);

                k[(first + cell) * a.dims.d_k + i] = __float2half(mag * y);
            }
        }
        __syncthreads();
    }
    __syncthreads();

    const minicache_cuda_head head_v = a.head_v(head_kv);
    decode_tile(shape, a.v, head_v, a.dims.d_v, stream, cell_0, coded, shared);
    for (int c = threadIdx.y; c < CELLS; c += MINICACHE_ATTN_WARPS) {
        if (!coded[c]) {
            continue;
        }
        const int   cell = cell_0 + c;
        const float mag  = expf(a.log_magnitude(2, head_kv, head_v.code(a.v, stream, cell)));
        for (int i = threadIdx.x; i < a.dims.d_v; i += WARP_SIZE) {
            v[(first + cell) * a.dims.d_v + i] = __float2half(mag * rows[c * shape.ld_row + i]);
        }
    }
}

bool minicache_cuda_restore_fits(const minicache_attn_dims & d) { return restore_shape_of(d).shared <= MINICACHE_ATTN_SHARED; }

void minicache_cuda_restore(const minicache_cuda_attn & a, half * k, half * v, cudaStream_t stream) {
    const restore_shape shape = restore_shape_of(a.dims);

    minicache_cuda_launch(restore_kernel, dim3((a.dims.n_kv + CELLS - 1) / CELLS, a.dims.n_head_kv, a.dims.n_stream),
        dim3(WARP_SIZE, MINICACHE_ATTN_WARPS), shape.shared, stream, a, shape, k, v);
}
