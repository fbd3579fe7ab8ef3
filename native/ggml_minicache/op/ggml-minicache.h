#pragma once

// The ggml ops of MiniCache (Liu et al. 2024, arXiv 2405.14366). They are variants of one op, GGML_OP_MINICACHE, so that
// llama.cpp's tables of ops grow by a single line.
//
// Words and dimensions:
//   d_k, d_v    head sizes of K and V           n_head_kv   KV heads          n_head   query heads, a multiple of n_head_kv
//   n_kv        cells seen by the graph         n_tps       tokens of the ubatch per stream
//   n_stream    streams seen by the graph       n_tokens    n_tps*n_stream, stream by stream
// A group is 1 to 4 neighbouring layers that share storage, and `side` is a layer's number in it, 0 for the shallowest. Two
// layers that are merged are called a and b.

#include "ggml.h"
#include "minicache-code.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ggml_minicache_op {
    GGML_MINICACHE_OP_INDEX,
    GGML_MINICACHE_OP_ATTN,
    GGML_MINICACHE_OP_MERGE,
    GGML_MINICACHE_OP_RETAIN,
    GGML_MINICACHE_OP_ENCODE,
    GGML_MINICACHE_OP_ATTN_CODE,
};

// What a cell holds, as ggml_minicache_index() passes it to the attention. Values >= 0 are numbers of current tokens.
enum ggml_minicache_cell {
    GGML_MINICACHE_CELL_MERGED   = -1,
    GGML_MINICACHE_CELL_RETAINED = -2,
    GGML_MINICACHE_CELL_EMPTY    = -3,
    GGML_MINICACHE_CELL_WINDOW   = -4,
};

// A group's slots are I32 [2, window + n_slot + GGML_MINICACHE_SLOT_STATS, n_stream]. The first `window` slots hold the
// first tokens of the stream, which every later one reads, and the latest ones: see minicache-window.h. Of the slots behind them, number
// i serves the cells [i*block, (i + 1)*block). Each slot is { cell + 1, or 0 if it is free; the token's distance as f32 bits }.
// Pools have a row for each slot and layer. The rows behind the slots are running statistics: { mean distance of K, of V } as
// f32 bits, then { tokens merged, 0 }.
#define GGML_MINICACHE_SLOT_STATS 2

// Number of slots that serve n_cells cells, one for each block of cells; 0 if block is 0.
static inline int64_t ggml_minicache_n_slot(int64_t n_cells, int32_t block) {
    return block > 0 ? (n_cells + block - 1) / block : 0;
}

// which kind of GGML_OP_MINICACHE `op` is
GGML_API enum ggml_minicache_op ggml_minicache_get_op(const struct ggml_tensor * op);

// Finds out what each cell holds in this ubatch.
//   cells  I32 [n_kv, n_stream, 1 or 2]  the current token in the cell (its number in its stream), or MERGED, or EMPTY; for coded
//                                        groups, the cells' bases follow
//   slots  I32 [2, window + n_slot + 2, n_stream]
//   result I32 [n_kv, n_stream, 1 or 2]  as `cells`, but RETAINED or WINDOW where a slot holds the cell
GGML_API struct ggml_tensor * ggml_minicache_index(
    struct ggml_context * ctx, struct ggml_tensor * cells, struct ggml_tensor * slots, int32_t block, int32_t window);

struct ggml_minicache_attn_params {
    float   scale;
    float   max_bias;  // ALiBi, as in ggml_flash_attn_ext
    float   softcap;   // 0: none
    int16_t side;
    int16_t reference;  // 1: the scalar reference kernel
    int32_t block;      // cells per slot, 0 without a pool
    int32_t window;     // first and latest tokens that are kept unmerged, 0 for none
};

// Attention of one layer of a group over merged, retained and current entries under one softmax:
//   score_j = scale*(q·e_j)*m_j for a merged entry, scale*(q·k_j) for a retained or current one
//   result  = Σ p_j*m_j*e_j over merged entries + Σ p_j*v_j over the others
//   q       F32 [d_k, n_tps, n_head, n_stream]
//   dir_k   any [d_k, n_head_kv, n_kv, n_stream]
//   dir_v   any [d_v, n_head_kv, n_kv, n_stream]
//   mag     F16 [n_head_kv, 4, n_kv, n_stream]     |K_a|, |K_b|, |V_a|, |V_b|; NULL: all 1
//   pool_k  any [d_k, n_head_kv, window + n_slot, n_stream] this layer's retained K; NULL without a pool
//   pool_v  any [d_v, n_head_kv, window + n_slot, n_stream]
//   kv_cur  F32 [(d_k + d_v)*n_head_kv, n_tokens]  this layer's current K and V, heads of K first; NULL: none
//   mask    F16 [n_kv, n_tps, 1, n_stream]         for all cells, those of the current tokens included; NULL: all are seen
//   index   I32 [n_kv, n_stream]                   result of ggml_minicache_index(), or its `cells` without a pool; NULL: every
//                                                  cell holds a merged entry, and the mask says which are seen
//   sinks   F32 [n_head] or NULL
//   result  F32 [d_v, n_head, n_tps, n_stream]
// Without mag, pools, kv_cur and index it computes what ggml_flash_attn_ext() does: attention over the rows of a plain layer.
GGML_API struct ggml_tensor * ggml_minicache_attn(struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * dir_k,
    struct ggml_tensor * dir_v, struct ggml_tensor * mag, struct ggml_tensor * pool_k, struct ggml_tensor * pool_v,
    struct ggml_tensor * kv_cur, struct ggml_tensor * mask, struct ggml_tensor * index, struct ggml_tensor * sinks,
    struct ggml_minicache_attn_params params);

struct ggml_minicache_merge_params {
    int32_t d_k;
    int32_t d_v;  // may be 0
    int32_t n_head_kv;
    float   t;        // SLERP parameter
    int32_t average;  // 1: directions are the means of both vectors, and magnitudes are 1
};

// Merges the current K and V of both layers, for each token and KV head (eqs. 3 and 4 of the paper).
//   kv_a, kv_b  F32 [(d_k + d_v)*n_head_kv, n_tokens]
//   result      F32 [(d_k + d_v + 6)*n_head_kv, n_tokens]: directions of K, of V, then, [n_head_kv] each, |K_a|, |K_b|, |V_a|,
//               |V_b|, and the distances Ω/π of K and of V. Magnitudes are at most 65504, because they are stored in f16.
GGML_API struct ggml_tensor * ggml_minicache_merge(
    struct ggml_context * ctx, struct ggml_tensor * kv_a, struct ggml_tensor * kv_b, struct ggml_minicache_merge_params params);

struct ggml_minicache_retain_params {
    int32_t d_k;
    int32_t d_v;
    int32_t n_head_kv;
    int32_t n_layer;
    int32_t block;     // cells per slot; 0: there is no pool, and only the statistics are kept
    int64_t n_cells;   // cells of a stream in the whole cache
    int32_t stream_0;  // the first stream of `cells`
    int32_t window;    // first and latest tokens that are kept unmerged, 0 for none
};

// Offers the current tokens to the group's slots, in place. A slot keeps the most distant token of its block (by the mean over
// heads of the distances of K and V). It drops a token whose cell has been emptied or is taken by a current token. The window
// takes every token.
//   slots    I32 [2, window + n_slot + 2, all streams]
//   merged   F32, result of ggml_minicache_merge() or ggml_minicache_encode(): the last 2*n_head_kv numbers of a row are read
//   rows     I64 [n_tokens]        cell + stream*n_cells of each current token
//   cells    I32 [n_kv, n_stream]  as for ggml_minicache_index()
//   kv       [params.n_layer]      each layer's F32 [(d_k + d_v)*n_head_kv, n_tokens], as for ggml_minicache_merge()
//   pool_k   any [d_k*n_head_kv, window + n_slot, all streams, n_layer], NULL without a pool
//   pool_v   any [d_v*n_head_kv, window + n_slot, all streams, n_layer], NULL without a pool
//   result   a view of slots
GGML_API struct ggml_tensor * ggml_minicache_retain(struct ggml_context * ctx, struct ggml_tensor * slots,
    struct ggml_tensor * merged, struct ggml_tensor * rows, struct ggml_tensor * cells, struct ggml_tensor * const * kv,
    struct ggml_tensor * pool_k, struct ggml_tensor * pool_v, struct ggml_minicache_retain_params params);

//
// groups that are stored as a shared code, see minicache-code.h
//

// Encodes the current K and V of all layers and writes them to the cache, in place, for each token and KV head.
//   kv          [n_layer]  each layer's F32 [(d_k + d_v)*n_head_kv, n_tokens]
//   codec       I8  [minicache_codec_offsets.size]
//   code_k      I8  [shape.bytes_k, n_cells, all streams]
//   code_v      I8  [shape.bytes_v, n_cells, all streams]
//   rows        I64 [n_tokens]  cell + stream*n_cells of each current token
//   bases       I32 [n_tokens]  the position that each token's K is coded relative to
//   result      F32 [2*n_head_kv, n_tokens]: for each KV head the squared error of K, then for each that of V, relative to the
//               squared length and averaged over the layers, in [0, 1]. These are the token's distances, as at the end of the
//               rows of ggml_minicache_merge().
GGML_API struct ggml_tensor * ggml_minicache_encode(struct ggml_context * ctx, struct ggml_tensor * const * kv,
    struct ggml_tensor * codec, struct ggml_tensor * code_k, struct ggml_tensor * code_v, struct ggml_tensor * rows,
    struct ggml_tensor * bases, struct minicache_code_shape shape);

// parameters of the encode op
struct ggml_minicache_encode_params {
    struct minicache_code_shape shape;
    int32_t                     reference;  // 1: the scalar reference
};

// Makes an encode op run the scalar reference.
GGML_API void ggml_minicache_encode_set_reference(struct ggml_tensor * op);

// As ggml_minicache_attn(), with coded entries in place of merged ones. For those, with codes z and the magnitudes m of K and μ
// of V:
//   score_j = scale*(D_kᵀR(-b_j)q)·z_j*m_j, and D_v*Σ p_j*μ_j*z_j is added to the result
//   code_k  I8  [shape.bytes_k, 1, n_kv, n_stream]
//   code_v  I8  [shape.bytes_v, 1, n_kv, n_stream]
//   codec   I8  [minicache_codec_offsets.size]
//   index   I32 [n_kv, n_stream, 2]  what each cell holds, as for ggml_minicache_attn(); then the base of each cell
//   params  side, block, scale, ... as for ggml_minicache_attn()
GGML_API struct ggml_tensor * ggml_minicache_attn_code(struct ggml_context * ctx, struct ggml_tensor * q,
    struct ggml_tensor * code_k, struct ggml_tensor * code_v, struct ggml_tensor * codec, struct ggml_tensor * pool_k,
    struct ggml_tensor * pool_v, struct ggml_tensor * kv_cur, struct ggml_tensor * mask, struct ggml_tensor * index,
    struct ggml_tensor * sinks, struct ggml_minicache_attn_params params, struct minicache_code_shape shape);

// parameters of the attention over codes
struct ggml_minicache_attn_code_params {
    struct ggml_minicache_attn_params attn;
    struct minicache_code_shape       shape;
};

#ifdef __cplusplus
}
#endif
