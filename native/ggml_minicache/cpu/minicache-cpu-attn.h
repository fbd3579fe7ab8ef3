#pragma once

// What the scalar and the vectorised attention share: the op's operands by name, and where the bytes of each entry are.

#include "minicache-cpu-code.h"
#include "minicache-cpu-rows.h"
#include "minicache-cpu.h"
#include "minicache-window.h"
#include "simd-mappings.h"

#include <algorithm>
#include <cmath>

// The first row of K's and of V's magnitudes in a cell's [4][n_head_kv]; the layer's side is added.
enum minicache_mag { MINICACHE_MAG_K = 0, MINICACHE_MAG_V = 2 };

struct minicache_attn {
    explicit minicache_attn(const ggml_tensor * dst) :
        p(minicache_params<ggml_minicache_attn_params>(dst)), coded(ggml_minicache_get_op(dst) == GGML_MINICACHE_OP_ATTN_CODE),
        shape(coded ? minicache_params<ggml_minicache_attn_code_params>(dst).shape : minicache_code_shape{}), q(dst->src[0]),
        cache_k(dst->src[1]), cache_v(dst->src[2]), mag(coded ? nullptr : dst->src[3]), codec(coded ? dst->src[3] : nullptr),
        pool_k(dst->src[4]), pool_v(dst->src[5]), kv_cur(dst->src[6]), mask(dst->src[7]), index(dst->src[8]), sinks(dst->src[9]),
        d_k(q->ne[0]), d_v(dst->ne[0]), r_k(coded ? shape.r_k : d_k), r_v(coded ? shape.r_v : d_v), n_tps(q->ne[1]),
        n_head(q->ne[2]), n_stream(q->ne[3]), n_head_kv(coded ? shape.n_head_kv : cache_k->ne[1]), n_gqa(n_head / n_head_kv),
        n_kv(cache_k->ne[2]), read_cache_k(coded ? nullptr : minicache_row_reader(cache_k->type)),
        read_cache_v(coded ? nullptr : minicache_row_reader(cache_v->type)),
        read_pool_k(pool_k ? minicache_row_reader(pool_k->type) : nullptr),
        read_pool_v(pool_v ? minicache_row_reader(pool_v->type) : nullptr) {}

    const ggml_minicache_attn_params p;
    const bool                       coded;  // the op is ggml_minicache_attn_code(), not ggml_minicache_attn()
    const minicache_code_shape       shape;

    const ggml_tensor * q;
    const ggml_tensor * cache_k;
    const ggml_tensor * cache_v;
    const ggml_tensor * mag;
    const ggml_tensor * codec;
    const ggml_tensor * pool_k;
    const ggml_tensor * pool_v;
    const ggml_tensor * kv_cur;
    const ggml_tensor * mask;
    const ggml_tensor * index;
    const ggml_tensor * sinks;

    const int64_t d_k;
    const int64_t d_v;
    const int64_t r_k;  // numbers of a shared entry: a direction's, or those of the longest code of all KV heads
    const int64_t r_v;
    const int64_t n_tps;
    const int64_t n_head;
    const int64_t n_stream;
    const int64_t n_head_kv;
    const int64_t n_gqa;
    const int64_t n_kv;

    const minicache_read_row_t read_cache_k;
    const minicache_read_row_t read_cache_v;
    const minicache_read_row_t read_pool_k;
    const minicache_read_row_t read_pool_v;

    const float * query(int64_t stream, int64_t head, int64_t token) const {
        return (const float *) ((const char *) q->data + stream * q->nb[3] + head * q->nb[2] + token * q->nb[1]);
    }

    // the f16 mask of one token over all cells, null if every cell is seen
    const ggml_fp16_t * mask_row(int64_t stream, int64_t token) const {
        return mask ? (const ggml_fp16_t *) ((const char *) mask->data + stream * mask->nb[3] + token * mask->nb[1]) : nullptr;
    }

    // what each cell holds; null: all hold merged entries
    const int32_t * cells(int64_t stream) const {
        return index ? (const int32_t *) ((const char *) index->data + stream * index->nb[1]) : nullptr;
    }

    int32_t state(int64_t stream, int64_t cell) const { return index ? cells(stream)[cell] : GGML_MINICACHE_CELL_MERGED; }

    // the base of each coded cell
    const int32_t * bases(int64_t stream) const { return (const int32_t *) ((const char *) cells(stream) + index->nb[2]); }

    float magnitude(minicache_mag which, int64_t stream, int64_t head_kv, int64_t cell) const {
        if (!mag) {
            return 1.0f;
        }
        const char * row = (const char *) mag->data + stream * mag->nb[3] + cell * mag->nb[2] + (which + p.side) * mag->nb[1];
        return GGML_CPU_FP16_TO_FP32(((const ggml_fp16_t *) row)[head_kv]);
    }

    // the bytes of a merged entry's directions
    const void * merged_k(int64_t stream, int64_t head_kv, int64_t cell) const { return row(cache_k, stream, head_kv, cell); }

    const void * merged_v(int64_t stream, int64_t head_kv, int64_t cell) const { return row(cache_v, stream, head_kv, cell); }

    void read_merged(int64_t stream, int64_t head_kv, int64_t cell, float * k, float * v) const {
        read_cache_k(merged_k(stream, head_kv, cell), k, d_k);
        read_cache_v(merged_v(stream, head_kv, cell), v, d_v);
    }

    // the codecs of a KV head
    minicache_code_head head_k(int64_t head_kv) const { return minicache_code_head_k(shape, codec->data, head_kv); }

    minicache_code_head head_v(int64_t head_kv) const { return minicache_code_head_v(shape, codec->data, head_kv); }

    // the code rows of a coded entry
    const uint8_t * code_k(const minicache_code_head & head, int64_t stream, int64_t cell) const {
        return (const uint8_t *) row(cache_k, stream, 0, cell) + head.row;
    }

    const uint8_t * code_v(const minicache_code_head & head, int64_t stream, int64_t cell) const {
        return (const uint8_t *) row(cache_v, stream, 0, cell) + head.row;
    }

    // the bytes of a retained token
    const void * retained_k(int64_t stream, int64_t head_kv, int64_t cell, int32_t state) const {
        return row(pool_k, stream, head_kv, slot(cell, state));
    }

    const void * retained_v(int64_t stream, int64_t head_kv, int64_t cell, int32_t state) const {
        return row(pool_v, stream, head_kv, slot(cell, state));
    }

    // K and V of the stream's current token number `state`
    const float * current_k(int64_t stream, int64_t head_kv, int32_t state) const {
        return (const float *) ((const char *) kv_cur->data + (stream * n_tps + state) * kv_cur->nb[1]) + head_kv * d_k;
    }

    const float * current_v(int64_t stream, int64_t head_kv, int32_t state) const {
        return current_k(stream, 0, state) + n_head_kv * d_k + head_kv * d_v;
    }

    void read_exact(int64_t stream, int64_t head_kv, int64_t cell, int32_t state, float * k, float * v) const {
        if (state < 0) {
            read_pool_k(retained_k(stream, head_kv, cell, state), k, d_k);
            read_pool_v(retained_v(stream, head_kv, cell, state), v, d_v);
        } else {
            std::copy_n(current_k(stream, head_kv, state), d_k, k);
            std::copy_n(current_v(stream, head_kv, state), d_v, v);
        }
    }

    // the ALiBi slope of a head, 1 without ALiBi
    float slope(int64_t head) const {
        if (p.max_bias <= 0.0f) {
            return 1.0f;
        }
        const uint32_t n_head_log2 = 1u << (uint32_t) floor(log2((double) n_head));
        const float    m0          = powf(2.0f, -p.max_bias / n_head_log2);
        const float    m1          = powf(2.0f, -(p.max_bias / 2.0f) / n_head_log2);
        return (uint64_t) head < n_head_log2 ? powf(m0, head + 1) : powf(m1, 2 * (head - n_head_log2) + 1);
    }

    // the score of a query·key product, as it enters the softmax
    float score(float dot, float mag_k, float bias) const {
        float s = p.scale * dot * mag_k;
        if (p.softcap != 0.0f) {
            s = p.softcap * tanhf(s / p.softcap);
        }
        return s + bias;
    }

  private:
    int64_t slot(int64_t cell, int32_t state) const {
        return state == GGML_MINICACHE_CELL_WINDOW ? minicache_window_slot(cell, p.window) : p.window + cell / p.block;
    }

    static const void * row(const ggml_tensor * x, int64_t stream, int64_t head_kv, int64_t i) {
        return (const char *) x->data + stream * x->nb[3] + i * x->nb[2] + head_kv * x->nb[1];
    }
};
