#include "llama-graph-minicache.h"

#include "ggml-minicache.h"
#include "llama-cparams.h"
#include "llama-graph-minicache-input.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"

#include <cmath>
#include <stdexcept>

llama_minicache_layer::llama_minicache_layer(const llm_graph_context & graph, llm_graph_input_attn_kv * inp_kv, int il) :
    graph(graph), il(il), k_idxs(inp_kv->get_k_idxs()), v_idxs(inp_kv->get_v_idxs()), kq_mask(inp_kv->get_kq_mask()) {
    begin(inp_kv->mctx, inp_kv->self_k_rot, inp_kv->self_v_rot);
}

llama_minicache_layer::llama_minicache_layer(const llm_graph_context & graph, llm_graph_input_attn_kv_iswa * inp_kv, int il) :
    graph(graph), il(il), k_idxs(inp_kv->get_k_idxs()), v_idxs(inp_kv->get_v_idxs()), kq_mask(inp_kv->get_kq_mask()) {
    if (!graph.hparams.is_swa(il)) {
        begin(inp_kv->mctx->get_base(), inp_kv->self_k_rot, inp_kv->self_v_rot);
    }
}

void llama_minicache_layer::begin(const llama_kv_cache_context * mctx, ggml_tensor *& k_rot, ggml_tensor *& v_rot) {
    inp = llm_graph_input_minicache::of(graph, mctx);
    if (!inp) {
        return;
    }
    k_rot_of_inp   = &k_rot;
    v_rot_of_inp   = &v_rot;
    k_rot_upstream = k_rot;
    v_rot_upstream = v_rot;

    const bool rotates_k = inp->kv->rotates_k(il);
    const bool rotates_v = inp->kv->rotates_v(il);
    if (rotates_k && !k_rot && !inp->k_rot) {
        inp->k_rot = mctx->build_input_k_rot(graph.ctx0);
    }
    if (rotates_v && !v_rot && !inp->v_rot) {
        inp->v_rot = mctx->build_input_v_rot(graph.ctx0);
    }
    k_rot = !rotates_k ? nullptr : k_rot ? k_rot : inp->k_rot;
    v_rot = !rotates_v ? nullptr : v_rot ? v_rot : inp->v_rot;
}

llama_minicache_layer::~llama_minicache_layer() {
    if (inp) {
        *k_rot_of_inp = k_rot_upstream;
        *v_rot_of_inp = v_rot_upstream;
    }
}

// Each token's heads of K, then its heads of V.
static ggml_tensor * concat_kv(ggml_context * ctx, ggml_tensor * k, ggml_tensor * v) {
    const auto flat = [&](ggml_tensor * x) {
        x = ggml_is_contiguous(x) ? x : ggml_cont(ctx, x);
        return ggml_reshape_2d(ctx, x, x->ne[0] * x->ne[1], x->ne[2]);
    };
    return ggml_concat(ctx, flat(k), flat(v), 0);
}

// Gives the attention's inputs names that a callback can look for. To a callback, scores are q·k/√d: some models scale their
// queries in another way.
static void observe(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, float kq_scale, int il) {
    ggml_cgraph * gf    = graph.gf;
    const float   usual = 1.0f / std::sqrt((float) q->ne[0]);
    if (std::fabs(kq_scale - usual) > 1e-6f * usual) {
        q = ggml_scale(graph.ctx0, q, kq_scale / usual);
    }
    const auto name = [&](ggml_tensor * x, const char * format) {
        ggml_format_name(x, format, il);
        ggml_build_forward_expand(gf, x);
    };
    name(q, "minicache_q-%d");
    if (k && v) {
        name(k, "minicache_k-%d");
        name(v, "minicache_v-%d");
    }
}

// Multiplies each head of x [d, n_head, n_tokens] by its KV head's basis matrix [d, d, n_head_kv]. The result is not contiguous.
static ggml_tensor * in_basis(ggml_context * ctx, ggml_tensor * x, ggml_tensor * basis) {
    if (!basis) {
        return x;
    }
    ggml_tensor * y = ggml_mul_mat(ctx, basis, ggml_permute(ctx, x, 0, 2, 1, 3));
    ggml_mul_mat_set_prec(y, GGML_PREC_F32);
    return ggml_permute(ctx, y, 0, 2, 1, 3);
}

// Views the first n rows of d*n_head numbers in a cache tensor, or in a layer's side of a pool, as [d, n_head, n, n_stream],
// for the ubatch's streams.
static ggml_tensor * view_heads(
    ggml_context * ctx, ggml_tensor * x, int64_t d, int64_t n, const llama_kv_cache::slot_info & sinfo, int32_t side = 0) {
    if (!x) {
        return nullptr;
    }
    return ggml_view_4d(ctx, x, d, x->ne[0] / d, n, sinfo.s1 - sinfo.s0 + 1, ggml_row_size(x->type, d), x->nb[1], x->nb[2],
        side * x->nb[3] + sinfo.s0 * x->nb[2]);
}

static ggml_tensor * build_index(ggml_context * ctx, const llm_graph_input_minicache & inp, const minicache_group & group) {
    if (inp.kv->get_n_slot() == 0) {
        return inp.cells;
    }
    const auto & sinfo = inp.mctx->get_sinfo();

    ggml_tensor * slots = ggml_view_3d(ctx, group.slots, group.slots->ne[0], group.slots->ne[1], sinfo.s1 - sinfo.s0 + 1,
        group.slots->nb[1], group.slots->nb[2], sinfo.s0 * group.slots->nb[2]);

    return ggml_minicache_index(ctx, inp.cells, slots, inp.kv->get_block(), inp.kv->get_window());
}

// Merges the current tokens of all layers and stores them. Everything that reads the cache is in the graph already.
static void build_store(const llm_graph_context & graph, const llm_graph_input_minicache & inp, const minicache_group & group,
    const std::vector<ggml_tensor *> & kv, ggml_tensor * k_idxs) {
    ggml_context * ctx = graph.ctx0;

    const int32_t d_k       = group.d_k;
    const int32_t d_v       = group.d_v;
    const int32_t n_head_kv = group.n_head_kv;

    ggml_tensor * merged;
    if (group.is_coded()) {
        merged = ggml_minicache_encode(ctx, kv.data(), group.codec, group.dir_k, group.dir_v, k_idxs, inp.bases, group.shape);
    } else {
        const bool average = inp.kv->get_mode() == LLAMA_MINICACHE_MODE_AVERAGE;

        merged = ggml_minicache_merge(ctx, kv[0], kv[1], { d_k, d_v, n_head_kv, inp.kv->get_settings().t, average });

        int64_t offset = 0;
        for (ggml_tensor * dst : group.cell_tensors()) {
            ggml_tensor * rows = ggml_view_2d(ctx, merged, dst->ne[0], merged->ne[1], merged->nb[1], offset * sizeof(float));
            ggml_tensor * flat = ggml_reshape_2d(ctx, dst, dst->ne[0], dst->ne[1] * dst->ne[2]);
            ggml_build_forward_expand(graph.gf, ggml_set_rows(ctx, flat, rows, k_idxs));
            offset += dst->ne[0];
        }
    }

    const ggml_minicache_retain_params params = {
        d_k,
        d_v,
        n_head_kv,
        group.n_layer(),
        inp.kv->get_block(),
        group.dir_k->ne[1],
        (int32_t) inp.mctx->get_sinfo().s0,
        inp.kv->get_window(),
    };
    ggml_build_forward_expand(graph.gf,
        ggml_minicache_retain(ctx, group.slots, merged, k_idxs, inp.cells, kv.data(), group.pool_k, group.pool_v, params));
}

// Views x [d, n_head, n_tokens] as the ops take queries: [d, n_tps, n_head, n_stream].
static ggml_tensor * view_queries(ggml_context * ctx, ggml_tensor * x, int64_t n_stream) {
    const int64_t n_tps = x->ne[2] / n_stream;
    return ggml_permute(
        ctx, ggml_view_4d(ctx, x, x->ne[0], x->ne[1], n_tps, n_stream, x->nb[1], x->nb[2], x->nb[2] * n_tps, 0), 0, 2, 1, 3);
}

static ggml_minicache_attn_params attn_params(
    const llm_graph_context & graph, const llama_kv_cache_minicache & kv, float kq_scale, int32_t side) {
    return {
        /*.scale     =*/kq_scale,
        /*.max_bias  =*/graph.hparams.f_max_alibi_bias,
        /*.softcap   =*/graph.hparams.attn_soft_cap ? graph.hparams.f_attn_logit_softcapping : 0.0f,
        /*.side      =*/(int16_t) side,
        /*.reference =*/0,
        /*.block     =*/kv.get_block(),
        /*.window    =*/kv.get_window(),
    };
}

// Attends over the rows of a layer that is not merged.
static ggml_tensor * build_plain(const llm_graph_context & graph, const llm_graph_input_minicache & inp, ggml_tensor * q_cur,
    ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il) {
    ggml_context * ctx = graph.ctx0;

    ggml_tensor * k   = inp.mctx->get_k(ctx, il);
    ggml_tensor * v   = inp.mctx->get_v(ctx, il);
    ggml_tensor * cur = ggml_minicache_attn(ctx, view_queries(ctx, q_cur, k->ne[3]), k, v, nullptr, nullptr, nullptr, nullptr,
        kq_mask, nullptr, sinks, attn_params(graph, *inp.kv, kq_scale, 0));
    return ggml_reshape_2d(ctx, cur, cur->ne[0] * cur->ne[1], cur->ne[2] * cur->ne[3]);
}

// Attends over a group's entries and the current tokens of one of its layers, kv_cur F32 [(d_k + d_v)*n_head_kv, n_tokens].
static ggml_tensor * build_merged(const llm_graph_context & graph, const llm_graph_input_minicache & inp, int32_t ig,
    int32_t side, ggml_tensor * q_cur, ggml_tensor * kv_cur, ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale) {
    ggml_context * ctx   = graph.ctx0;
    const auto &   group = inp.kv->get_group(ig);

    const auto &  sinfo    = inp.mctx->get_sinfo();
    const int64_t n_kv     = inp.mctx->get_n_kv();
    const int64_t n_slot   = inp.kv->get_window() + ggml_minicache_n_slot(n_kv, inp.kv->get_block());
    const int64_t n_stream = inp.cells->ne[1];

    ggml_tensor * q = view_queries(ctx, in_basis(ctx, q_cur, group.basis_k[side]), n_stream);

    const ggml_minicache_attn_params params = attn_params(graph, *inp.kv, kq_scale, side);

    // the codes of a token's heads have lengths of their own and are seen as one
    ggml_tensor * rows_k = view_heads(ctx, group.dir_k, group.is_coded() ? group.shape.bytes_k : group.d_k, n_kv, sinfo);
    ggml_tensor * rows_v = view_heads(ctx, group.dir_v, group.is_coded() ? group.shape.bytes_v : group.d_v, n_kv, sinfo);
    ggml_tensor * pool_k = view_heads(ctx, group.pool_k, group.d_k, n_slot, sinfo, side);
    ggml_tensor * pool_v = view_heads(ctx, group.pool_v, group.d_v, n_slot, sinfo, side);

    ggml_tensor * cur;
    if (group.is_coded()) {
        cur = ggml_minicache_attn_code(
            ctx, q, rows_k, rows_v, group.codec, pool_k, pool_v, kv_cur, kq_mask, inp.index[ig], sinks, params, group.shape);
    } else {
        ggml_tensor * mag = group.mag;
        if (mag) {
            mag = ggml_view_4d(ctx, mag, group.n_head_kv, 4, n_kv, n_stream, ggml_row_size(mag->type, group.n_head_kv),
                mag->nb[1], mag->nb[2], sinfo.s0 * mag->nb[2]);
        }
        cur = ggml_minicache_attn(ctx, q, rows_k, rows_v, mag, pool_k, pool_v, kv_cur, kq_mask, inp.index[ig], sinks, params);
    }

    if (group.basis_o[side]) {
        cur = ggml_reshape_3d(ctx, cur, cur->ne[0], cur->ne[1], cur->ne[2] * cur->ne[3]);
        cur = ggml_cont(ctx, in_basis(ctx, cur, group.basis_o[side]));
    }
    return ggml_reshape_2d(ctx, cur, cur->ne[0] * cur->ne[1], cur->ne[2] * cur->ne[3]);
}

ggml_tensor * llama_minicache_layer::build_attn(ggml_tensor * q_cur, ggml_tensor * k_cur, ggml_tensor * v_cur, ggml_tensor * kq_b,
    ggml_tensor * sinks, float kq_scale) const {
    if (!inp) {
        return nullptr;
    }
    ggml_context *                   ctx = graph.ctx0;
    const llama_kv_cache_minicache & kv  = *inp->kv;

    if (kv.is_observed()) {
        observe(graph, q_cur, k_cur, v_cur, kq_scale, il);
    }
    const int32_t ig = kv.find_group(il);
    if (ig < 0) {
        if (kq_b || graph.cparams.training || !kv.attends_by_own_op(il)) {
            return nullptr;
        }
        if (k_cur && v_cur) {
            ggml_build_forward_expand(graph.gf, inp->mctx->cpy_k(ctx, k_cur, k_idxs, il));
            ggml_build_forward_expand(graph.gf, inp->mctx->cpy_v(ctx, v_cur, v_idxs, il));
        }
        return build_plain(graph, *inp, q_cur, kq_mask, sinks, kq_scale, il);
    }
    if (kq_b) {
        throw std::runtime_error("MiniCache: attention with a KQ bias is not supported");
    }

    const minicache_group &      group = kv.get_group(ig);
    const int32_t                side  = group.side_of(kv.source_of(il));
    std::vector<ggml_tensor *> & kvs   = inp->kv_cur[ig];

    if (!inp->index[ig]) {
        inp->index[ig] = build_index(ctx, *inp, group);
    }
    if (k_cur && v_cur) {
        kvs.push_back(concat_kv(ctx, in_basis(ctx, k_cur, group.basis_k[side]), in_basis(ctx, v_cur, group.basis_v[side])));

        // hybrid memories write this input whether or not a layer reads it, so it has to be allocated
        ggml_build_forward_expand(graph.gf, v_idxs);
    }
    ggml_tensor * cur = build_merged(graph, *inp, ig, side, q_cur, kvs[side], kq_mask, sinks, kq_scale);
    ggml_build_forward_expand(graph.gf, cur);

    if (k_cur && v_cur && side + 1 == group.n_layer()) {
        build_store(graph, *inp, group, kvs, k_idxs);
        inp->index[ig] = nullptr;  // the slots of layers that read this K and V are others now
    }
    return cur;
}
