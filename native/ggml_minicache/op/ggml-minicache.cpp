#include "ggml-minicache.h"

#include "ggml-impl.h"

#include <cstring>

// op_params hold the kind of op, then its parameter struct.

template <typename T>
static void set_params(ggml_tensor * op, ggml_minicache_op kind, const T & params) {
    static_assert(sizeof(int32_t) + sizeof(T) <= GGML_MAX_OP_PARAMS);

    const int32_t kind_i = kind;
    memcpy(op->op_params, &kind_i, sizeof(kind_i));
    memcpy(op->op_params + 1, &params, sizeof(params));
    op->op = GGML_OP_MINICACHE;
}

static void set_params(ggml_tensor * op, ggml_minicache_op kind) {
    ggml_set_op_params_i32(op, 0, kind);
    op->op = GGML_OP_MINICACHE;
}

ggml_minicache_op ggml_minicache_get_op(const ggml_tensor * op) {
    GGML_ASSERT(op->op == GGML_OP_MINICACHE);
    return (ggml_minicache_op) ggml_get_op_params_i32(op, 0);
}

ggml_tensor * ggml_minicache_index(ggml_context * ctx, ggml_tensor * cells, ggml_tensor * slots, int32_t block, int32_t window) {
    GGML_ASSERT(cells->type == GGML_TYPE_I32 && ggml_is_contiguous_rows(cells));
    GGML_ASSERT((cells->ne[2] == 1 || cells->ne[2] == 2) && cells->ne[3] == 1);
    GGML_ASSERT(slots->type == GGML_TYPE_I32 && slots->ne[0] == 2 && slots->ne[2] == cells->ne[1]);
    GGML_ASSERT(block >= 0 && window >= 0 && block + window > 0);
    GGML_ASSERT(slots->ne[1] >= window + ggml_minicache_n_slot(cells->ne[0], block) + GGML_MINICACHE_SLOT_STATS);

    ggml_tensor * result = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, cells->ne[0], cells->ne[1], cells->ne[2]);

    set_params(result, GGML_MINICACHE_OP_INDEX);
    ggml_set_op_params_i32(result, 1, block);
    ggml_set_op_params_i32(result, 2, window);
    result->src[0] = cells;
    result->src[1] = slots;

    return result;
}

// What the attention ops over merged and over coded entries have in common; the caller sets the parameters.
static ggml_tensor * attn_impl(ggml_context * ctx, ggml_tensor * q, ggml_tensor * cache_k, ggml_tensor * cache_v,
    ggml_tensor * scales, ggml_tensor * pool_k, ggml_tensor * pool_v, ggml_tensor * kv_cur, ggml_tensor * mask,
    ggml_tensor * index, ggml_tensor * sinks, const ggml_minicache_attn_params & params, int64_t d_v, int64_t n_head_kv,
    int n_layer) {
    const int64_t d_k      = q->ne[0];
    const int64_t n_tps    = q->ne[1];
    const int64_t n_head   = q->ne[2];
    const int64_t n_stream = q->ne[3];
    const int64_t n_kv     = cache_k->ne[2];

    GGML_ASSERT(q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float));
    GGML_ASSERT(n_head % n_head_kv == 0);
    GGML_ASSERT(cache_k->ne[3] == n_stream);
    GGML_ASSERT(cache_v->ne[1] == cache_k->ne[1] && cache_v->ne[2] == n_kv && cache_v->ne[3] == n_stream);
    if (index) {
        GGML_ASSERT(index->type == GGML_TYPE_I32 && index->nb[0] == sizeof(int32_t));
        GGML_ASSERT(index->ne[0] == n_kv && index->ne[1] == n_stream);
    } else {
        GGML_ASSERT(!pool_k && !kv_cur);
    }
    GGML_ASSERT(params.side >= 0 && params.side < n_layer);

    if (pool_k) {
        GGML_ASSERT(pool_v && params.block >= 0 && params.window >= 0 && params.block + params.window > 0);
        GGML_ASSERT(pool_k->ne[0] == d_k && pool_k->ne[1] == n_head_kv && pool_k->ne[3] == n_stream);
        GGML_ASSERT(pool_v->ne[0] == d_v && pool_v->ne[1] == n_head_kv && pool_v->ne[3] == n_stream);
        GGML_ASSERT(pool_k->ne[2] >= params.window + ggml_minicache_n_slot(n_kv, params.block));
        GGML_ASSERT(pool_v->ne[2] >= params.window + ggml_minicache_n_slot(n_kv, params.block));
    }
    if (kv_cur) {
        GGML_ASSERT(kv_cur->type == GGML_TYPE_F32 && ggml_is_contiguous(kv_cur));
        GGML_ASSERT(kv_cur->ne[0] == (d_k + d_v) * n_head_kv);
    }
    if (mask) {
        GGML_ASSERT(mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t));
        GGML_ASSERT(mask->ne[0] == n_kv && mask->ne[1] >= n_tps && mask->ne[3] == n_stream);
    }
    if (sinks) {
        GGML_ASSERT(sinks->type == GGML_TYPE_F32 && sinks->ne[0] == n_head);
    }

    ggml_tensor * result = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, d_v, n_head, n_tps, n_stream);

    result->src[0] = q;
    result->src[1] = cache_k;
    result->src[2] = cache_v;
    result->src[3] = scales;
    result->src[4] = pool_k;
    result->src[5] = pool_v;
    result->src[6] = kv_cur;
    result->src[7] = mask;
    result->src[8] = index;
    result->src[9] = sinks;

    return result;
}

ggml_tensor * ggml_minicache_attn(ggml_context * ctx, ggml_tensor * q, ggml_tensor * dir_k, ggml_tensor * dir_v,
    ggml_tensor * mag, ggml_tensor * pool_k, ggml_tensor * pool_v, ggml_tensor * kv_cur, ggml_tensor * mask, ggml_tensor * index,
    ggml_tensor * sinks, ggml_minicache_attn_params params) {
    GGML_ASSERT(dir_k->ne[0] == q->ne[0]);
    if (mag) {
        GGML_ASSERT(mag->type == GGML_TYPE_F16 && mag->nb[0] == sizeof(ggml_fp16_t));
        GGML_ASSERT(mag->ne[0] == dir_k->ne[1] && mag->ne[1] == 4);
        GGML_ASSERT(mag->ne[2] == dir_k->ne[2] && mag->ne[3] == dir_k->ne[3]);
    }

    ggml_tensor * result =
        attn_impl(ctx, q, dir_k, dir_v, mag, pool_k, pool_v, kv_cur, mask, index, sinks, params, dir_v->ne[0], dir_k->ne[1], 2);

    set_params(result, GGML_MINICACHE_OP_ATTN, params);

    return result;
}

ggml_tensor * ggml_minicache_merge(
    ggml_context * ctx, ggml_tensor * kv_a, ggml_tensor * kv_b, ggml_minicache_merge_params params) {
    GGML_ASSERT(kv_a->type == GGML_TYPE_F32 && ggml_is_contiguous(kv_a));
    GGML_ASSERT(kv_b->type == GGML_TYPE_F32 && ggml_is_contiguous(kv_b));
    GGML_ASSERT(ggml_are_same_shape(kv_a, kv_b) && ggml_is_matrix(kv_a));
    GGML_ASSERT(kv_a->ne[0] == (int64_t) (params.d_k + params.d_v) * params.n_head_kv);
    GGML_ASSERT(params.t >= 0.0f && params.t <= 1.0f);

    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, kv_a->ne[0] + (int64_t) 6 * params.n_head_kv, kv_a->ne[1]);

    set_params(result, GGML_MINICACHE_OP_MERGE, params);
    result->src[0] = kv_a;
    result->src[1] = kv_b;

    return result;
}

ggml_tensor * ggml_minicache_retain(ggml_context * ctx, ggml_tensor * slots, ggml_tensor * merged, ggml_tensor * rows,
    ggml_tensor * cells, ggml_tensor * const * kv, ggml_tensor * pool_k, ggml_tensor * pool_v,
    ggml_minicache_retain_params params) {
    const int64_t n_tokens = kv[0]->ne[1];
    const int64_t n_slot   = params.window + ggml_minicache_n_slot(params.n_cells, params.block);

    GGML_ASSERT(params.n_layer >= 1 && params.n_layer <= MINICACHE_CODE_LAYERS);
    GGML_ASSERT(slots->type == GGML_TYPE_I32 && ggml_is_contiguous(slots));
    GGML_ASSERT(slots->ne[0] == 2 && slots->ne[1] == n_slot + GGML_MINICACHE_SLOT_STATS);
    for (int side = 0; side < params.n_layer; ++side) {
        GGML_ASSERT(kv[side]->type == GGML_TYPE_F32 && ggml_is_contiguous(kv[side]));
        GGML_ASSERT(kv[side]->ne[0] == (int64_t) (params.d_k + params.d_v) * params.n_head_kv && kv[side]->ne[1] == n_tokens);
    }
    GGML_ASSERT(merged->type == GGML_TYPE_F32 && merged->ne[1] == n_tokens && ggml_is_contiguous(merged));
    GGML_ASSERT(merged->ne[0] >= (int64_t) 2 * params.n_head_kv);
    GGML_ASSERT(rows->type == GGML_TYPE_I64 && ggml_is_contiguous(rows) && rows->ne[0] == n_tokens);
    GGML_ASSERT(cells->type == GGML_TYPE_I32 && ggml_is_contiguous_rows(cells));

    GGML_ASSERT((pool_k != nullptr) == (n_slot > 0) && (pool_v != nullptr) == (n_slot > 0));
    if (n_slot > 0) {
        GGML_ASSERT(
            pool_k->ne[0] == (int64_t) params.d_k * params.n_head_kv && pool_v->ne[0] == (int64_t) params.d_v * params.n_head_kv);
        for (const ggml_tensor * pool : { pool_k, pool_v }) {
            GGML_ASSERT(pool->ne[1] == n_slot && pool->ne[3] == params.n_layer);
        }
    }

    ggml_tensor * result = ggml_view_tensor(ctx, slots);

    set_params(result, GGML_MINICACHE_OP_RETAIN, params);
    result->src[0] = slots;
    result->src[1] = merged;
    result->src[2] = rows;
    result->src[3] = cells;
    result->src[4] = pool_k;
    result->src[5] = pool_v;
    for (int side = 0; side < params.n_layer; ++side) {
        result->src[6 + side] = kv[side];
    }

    return result;
}

static void check_shape(const minicache_code_shape & shape, const ggml_tensor * codec) {
    GGML_ASSERT(shape.d_k > 0 && shape.d_v > 0 && shape.n_head_kv > 0);
    GGML_ASSERT(shape.n_rot >= 0 && shape.n_rot <= shape.d_k && shape.n_rot % 2 == 0);
    GGML_ASSERT(shape.n_layer >= 1 && shape.n_layer <= MINICACHE_CODE_LAYERS);
    GGML_ASSERT(shape.rope >= MINICACHE_ROPE_NONE && shape.rope <= MINICACHE_ROPE_HALVES);
    GGML_ASSERT(codec->type == GGML_TYPE_I8 && ggml_is_contiguous(codec));
    GGML_ASSERT(ggml_nelements(codec) == minicache_codec_offsets_of(shape).size);
}

ggml_tensor * ggml_minicache_encode(ggml_context * ctx, ggml_tensor * const * kv, ggml_tensor * codec, ggml_tensor * code_k,
    ggml_tensor * code_v, ggml_tensor * rows, ggml_tensor * bases, minicache_code_shape shape) {
    const int64_t n_tokens = kv[0]->ne[1];
    const int     n_layer  = shape.n_layer;

    check_shape(shape, codec);
    for (int side = 0; side < n_layer; ++side) {
        GGML_ASSERT(kv[side]->type == GGML_TYPE_F32 && ggml_is_contiguous(kv[side]) && ggml_is_matrix(kv[side]));
        GGML_ASSERT(kv[side]->ne[0] == (int64_t) (shape.d_k + shape.d_v) * shape.n_head_kv && kv[side]->ne[1] == n_tokens);
    }
    GGML_ASSERT(code_k->type == GGML_TYPE_I8 && code_k->nb[0] == 1 && code_k->ne[3] == 1);
    GGML_ASSERT(code_v->type == GGML_TYPE_I8 && code_v->nb[0] == 1 && code_v->ne[3] == 1);
    GGML_ASSERT(code_k->ne[0] == shape.bytes_k && code_v->ne[0] == shape.bytes_v);
    GGML_ASSERT(code_k->ne[1] == code_v->ne[1] && code_k->ne[2] == code_v->ne[2]);
    GGML_ASSERT(rows->type == GGML_TYPE_I64 && ggml_is_contiguous(rows) && ggml_nelements(rows) == n_tokens);
    GGML_ASSERT(bases->type == GGML_TYPE_I32 && ggml_is_contiguous(bases) && ggml_nelements(bases) == n_tokens);

    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, (int64_t) 2 * shape.n_head_kv, n_tokens);

    set_params(result, GGML_MINICACHE_OP_ENCODE, ggml_minicache_encode_params{ shape, 0 });
    result->src[0] = codec;
    result->src[1] = code_k;
    result->src[2] = code_v;
    result->src[3] = rows;
    result->src[4] = bases;
    for (int side = 0; side < n_layer; ++side) {
        result->src[5 + side] = kv[side];
    }

    return result;
}

void ggml_minicache_encode_set_reference(ggml_tensor * op) {
    GGML_ASSERT(ggml_minicache_get_op(op) == GGML_MINICACHE_OP_ENCODE);

    ggml_minicache_encode_params params;
    memcpy(&params, op->op_params + 1, sizeof(params));
    params.reference = 1;
    set_params(op, GGML_MINICACHE_OP_ENCODE, params);
}

ggml_tensor * ggml_minicache_attn_code(ggml_context * ctx, ggml_tensor * q, ggml_tensor * code_k, ggml_tensor * code_v,
    ggml_tensor * codec, ggml_tensor * pool_k, ggml_tensor * pool_v, ggml_tensor * kv_cur, ggml_tensor * mask,
    ggml_tensor * index, ggml_tensor * sinks, ggml_minicache_attn_params params, minicache_code_shape shape) {
    check_shape(shape, codec);
    GGML_ASSERT(q->ne[0] == shape.d_k);
    for (const ggml_tensor * code : { code_k, code_v }) {
        GGML_ASSERT(code->type == GGML_TYPE_I8 && code->nb[0] == 1 && code->ne[1] == 1);
    }
    GGML_ASSERT(code_k->ne[0] == shape.bytes_k && code_v->ne[0] == shape.bytes_v);
    GGML_ASSERT(index && index->ne[2] == 2);

    ggml_tensor * result = attn_impl(ctx, q, code_k, code_v, codec, pool_k, pool_v, kv_cur, mask, index, sinks, params, shape.d_v,
        shape.n_head_kv, shape.n_layer);

    set_params(result, GGML_MINICACHE_OP_ATTN_CODE, ggml_minicache_attn_code_params{ params, shape });

    return result;
}
