#include "llama-graph-minicache-input.h"

#include "llama-cparams.h"

static ggml_tensor * new_input(ggml_context * ctx, const char * name, int64_t ne0, int64_t ne1, int64_t ne2) {
    ggml_tensor * x = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, ne0, ne1, ne2);
    ggml_set_input(x);
    ggml_set_name(x, name);
    return x;
}

llm_graph_input_minicache::llm_graph_input_minicache(const llm_graph_context & graph, const llama_kv_cache_minicache * kv,
    const llama_kv_cache_context * mctx) : kv(kv), mctx(mctx), kv_cur(kv->get_groups().size()), index(kv->get_groups().size()) {
    const int64_t n_stream = graph.cparams.kv_unified ? 1 : graph.ubatch.n_seqs_unq;

    cells = new_input(graph.ctx0, "minicache_inp_cells", mctx->get_n_kv(), n_stream, kv->is_coded() ? 2 : 1);
    if (kv->is_coded()) {
        bases = new_input(graph.ctx0, "minicache_inp_bases", graph.ubatch.n_tokens, 1, 1);
    }
}

void llm_graph_input_minicache::set_input(const llama_ubatch * ubatch) {
    const auto & sinfo = mctx->get_sinfo();
    if (bases) {
        kv->set_offsets(*ubatch, sinfo);
    }
    if (bases && bases->buffer) {
        kv->set_input_bases(bases, sinfo);
    }
    if (cells->buffer) {
        kv->set_input_cells(cells, sinfo);
    }
    if (k_rot && k_rot->buffer) {
        mctx->set_input_k_rot(k_rot);
    }
    if (v_rot && v_rot->buffer) {
        mctx->set_input_v_rot(v_rot);
    }
}

bool llm_graph_input_minicache::can_reuse(const llm_graph_params & params) {
    mctx = minicache_context_of(params.mctx);
    return mctx && cells->ne[0] == mctx->get_n_kv() && (!bases || bases->ne[0] == params.ubatch.n_tokens);
}

llm_graph_input_minicache * llm_graph_input_minicache::of(const llm_graph_context & graph, const llama_kv_cache_context * mctx) {
    const auto * kv = dynamic_cast<const llama_kv_cache_minicache *>(mctx->get_kv());
    if (!kv) {
        return nullptr;
    }
    for (const llm_graph_input_ptr & input : graph.res->inputs) {
        if (auto * own = dynamic_cast<llm_graph_input_minicache *>(input.get())) {
            return own;
        }
    }
    return (llm_graph_input_minicache *) graph.res->add_input(std::make_unique<llm_graph_input_minicache>(graph, kv, mctx));
}
