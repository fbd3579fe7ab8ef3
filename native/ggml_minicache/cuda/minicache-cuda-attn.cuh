#pragma once

// What the attention's kernels share: the op's operands by name, as in the CPU's struct minicache_attn.

#include "common.cuh"
#include "ggml-minicache.h"
#include "minicache-cuda-attn-schedule.h"
#include "minicache-cuda-rows.cuh"
#include "minicache-window.h"

// One KV head's K or V in the cache, as one layer decodes it.
struct minicache_cuda_head {
    minicache_code_layout layout;

    int32_t      row;      // where its code row begins in a token's row, in bytes
    int32_t      bytes;    // of the code row
    int32_t      r;        // coefficients, dims.r_k or dims.r_v at most
    const half * decoder;  // [d][r]

    // the code row of a cell
    __device__ const char * code(const minicache_cuda_rows & from, int s, int cell) const { return from.row(s, 0, cell) + row; }
};

struct minicache_cuda_attn {
    minicache_attn_dims        dims;
    ggml_minicache_attn_params p;
    minicache_code_shape       shape;
    minicache_codec_offsets    at;  // where the codec's parts begin

    minicache_cuda_rows q;  // F32, [d, token, head, stream]
    minicache_cuda_rows k;
    minicache_cuda_rows v;
    minicache_cuda_rows pool_k;
    minicache_cuda_rows pool_v;

    const char * mag;  // f16 [n_head_kv, 4, n_kv, n_stream]
    int64_t      mag_nb[3];

    const char *    codec;
    const float *   kv_cur;
    const char *    mask;
    int64_t         mask_token;
    int64_t         mask_stream;
    const int32_t * cells;
    int64_t         cells_stream;  // in numbers
    int64_t         cells_bases;
    const float *   sinks;

    // ALiBi
    float    m0;
    float    m1;
    uint32_t n_head_log2;

    __device__ const float * query(int s, int head, int token) const { return (const float *) q.row(s, token, head); }

    // what a cell holds; without an index, all hold merged entries
    __device__ int32_t state(int s, int cell) const {
        return cells ? cells[s * cells_stream + cell] : (int32_t) GGML_MINICACHE_CELL_MERGED;
    }

    __device__ int32_t base(int s, int cell) const { return cells[s * cells_stream + cells_bases + cell]; }

    // the mask, 0 without one
    __device__ float bias(int s, int token, int cell) const {
        return mask ? __half2float(((const half *) (mask + s * mask_stream + token * mask_token))[cell]) : 0.0f;
    }

    //   which: 0 for K, 2 for V
    __device__ float magnitude(int which, int s, int head_kv, int cell) const {
        if (!mag) {
            return 1.0f;
        }
        return __half2float(((const half *) (mag + s * mag_nb[2] + cell * mag_nb[1] + (which + p.side) * mag_nb[0]))[head_kv]);
    }

    // natural logarithm of a coded entry's magnitude
    //   which: 0 for K, 2 for V
    __device__ float log_magnitude(int which, int head_kv, const char * row) const {
        const float * range = (const float *) (codec + at.mag) + ((head_kv * 2 + which / 2) * shape.n_layer + p.side) * 2;
        const uint8_t q     = (uint8_t) row[p.side];
        return q == 0 ? -INFINITY : range[0] + (float) (q - 1) * range[1];
    }

    __device__ minicache_cuda_head head_k(int head_kv) const { return head(0, head_kv, at.dec_k, dims.d_k); }

    __device__ minicache_cuda_head head_v(int head_kv) const { return head(1, head_kv, at.dec_v, dims.d_v); }

    __device__ const float * freq() const { return (const float *) (codec + at.freq); }

    __device__ int slot(int32_t state, int cell) const {
        return state == GGML_MINICACHE_CELL_WINDOW ? minicache_window_slot(cell, p.window) : p.window + cell / p.block;
    }

    __device__ const float * current(int s, int token) const {
        return kv_cur + ((int64_t) s * dims.n_tps + token) * (dims.d_k + dims.d_v) * dims.n_head_kv;
    }

    // ALiBi slope of a head, 1 without ALiBi
    __device__ float slope(int head) const { return get_alibi_slope(p.max_bias, (uint32_t) head, n_head_log2, m0, m1); }

    // the score of a query·key product, as it enters the softmax
    __device__ float score(float dot, float bias) const {
        float s = p.scale * dot;
        if (p.softcap != 0.0f) {
            s = p.softcap * tanhf(s / p.softcap);
        }
        return s + bias;
    }

    // One warp: reads the K and V of a retained or current entry.
    __device__ void read_exact(int s, int head_kv, int cell, half * out_k, half * out_v) const {
        const int32_t holds = state(s, cell);
        if (holds < 0) {
            const int i = slot(holds, cell);
            minicache_read_row(pool_k.row(s, head_kv, i), pool_k.type, dims.d_k, out_k);
            minicache_read_row(pool_v.row(s, head_kv, i), pool_v.type, dims.d_v, out_v);
        } else {
            const float * x = current(s, holds);
            minicache_read_row_f32(x + head_kv * dims.d_k, dims.d_k, out_k);
            minicache_read_row_f32(x + dims.n_head_kv * dims.d_k + head_kv * dims.d_v, dims.d_v, out_v);
        }
    }

  private:
    //   decoders  where those of K, or of V, begin
    __device__ minicache_cuda_head head(int is_v, int head_kv, int64_t decoders, int d) const {
        const minicache_head_layout x       = minicache_codec_head(shape, codec, is_v, head_kv);
        const int                   r       = minicache_code_size(x.layout);
        const half *                decoder = (const half *) (codec + decoders);
        return { x.layout, x.row, minicache_code_bytes(x.layout), r,
            decoder + ((int64_t) shape.n_layer * x.coef + p.side * r) * d };
    }
};

// Queries as the coded entries of one base see them, (R(-b)q)ᵀD. One kernel makes them for all bases that a span of cells has, so
// that a decoder is read once for many of them.
struct minicache_query_table {
    int32_t * n_base;  // [n_stream][n_span]
    int32_t * base;    // [n_stream][n_span][the schedule's n_base]
    float *   scale;   // [n_stream][n_span][n_base][n_head_kv][n_row_tile*rows]
    half *    query;   // [...][r_k], coefficients at their places (minicache-code-unit.h), of absolute value 1 at most; a head
                       // with fewer leaves the rest unset
};

minicache_cuda_attn minicache_cuda_attn_of(const ggml_tensor * dst);

// Fills in the table.
//   n_sm  multiprocessors of the device
void minicache_cuda_query_table(const minicache_cuda_attn & a, const minicache_attn_schedule & schedule,
    const minicache_query_table & table, int n_sm, cudaStream_t stream);

// Whether a block has shared memory for restoring rows of this shape.
bool minicache_cuda_restore_fits(const minicache_attn_dims & d);

// Restores K and V of all cells as this layer has them: f16 [d, n_kv, n_head_kv, n_stream], zeros for empty cells.
void minicache_cuda_restore(const minicache_cuda_attn & a, half * k, half * v, cudaStream_t stream);
