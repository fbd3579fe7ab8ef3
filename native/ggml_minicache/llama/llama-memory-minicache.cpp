#include "llama-memory-minicache.h"

#include "llama-cparams.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-minicache-state.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

typedef llama_memory_i::layer_filter_cb layer_filter_cb;
typedef llama_memory_i::layer_reuse_cb  layer_reuse_cb;

//
// memories
//

static bool no_layer(int32_t il) {
    GGML_UNUSED(il);
    return false;
}

// llama.cpp's constructors allocate the window and the state; the part that is to be ours gets no layers there and is replaced.

class llama_kv_cache_iswa_minicache : public minicache_whole_states<llama_kv_cache_iswa> {
  public:
    llama_kv_cache_iswa_minicache(std::unique_ptr<llama_kv_cache_minicache> kv, const llama_model & model,
        const llama_memory_params & params, const llama_cparams & cparams, const layer_filter_cb & filter,
        const layer_reuse_cb & reuse) :
        minicache_whole_states(
            model, kv->get_type_k(), kv->get_type_v(), /*v_trans =*/false, cparams.offload_kqv, params.swa_full,
            cparams.kv_unified, cparams.n_ctx_seq, cparams.n_seq_max, cparams.n_ubatch, /*n_pad =*/1, nullptr,
            [&](int32_t il) { return model.hparams.is_swa(il) && (!filter || filter(il)); }, reuse, nullptr) {
        kv_base = std::move(kv);
    }
};

class llama_memory_hybrid_minicache : public minicache_whole_states<llama_memory_hybrid> {
  public:
    llama_memory_hybrid_minicache(std::unique_ptr<llama_kv_cache_minicache> kv, const llama_model & model,
        const llama_cparams & cparams, const layer_filter_cb & filter_recr) :
        minicache_whole_states(model, kv->get_type_k(), kv->get_type_v(), /*v_trans =*/false, cparams.n_ctx_seq, /*n_pad =*/1,
            /*n_swa =*/0, LLAMA_SWA_TYPE_NONE, GGML_TYPE_F32, GGML_TYPE_F32, std::max((uint32_t) 1, cparams.n_seq_max),
            cparams.n_seq_max, cparams.n_rs_seq, cparams.offload_kqv, cparams.kv_unified, no_layer, filter_recr) {
        mem_attn = std::move(kv);
    }
};

class llama_memory_hybrid_iswa_minicache : public minicache_whole_states<llama_memory_hybrid_iswa> {
  public:
    llama_memory_hybrid_iswa_minicache(std::unique_ptr<llama_kv_cache_iswa> kv, const llama_model & model,
        const llama_memory_params & params, const llama_cparams & cparams, const layer_filter_cb & filter_recr) :
        minicache_whole_states(model, GGML_TYPE_F16, GGML_TYPE_F16, /*v_trans =*/false, params.swa_full, cparams.n_ctx_seq,
            cparams.n_ubatch, /*n_pad =*/1, GGML_TYPE_F32, GGML_TYPE_F32, std::max((uint32_t) 1, cparams.n_seq_max),
            cparams.n_seq_max, cparams.n_rs_seq, cparams.offload_kqv, cparams.kv_unified, no_layer, filter_recr) {
        mem_attn = std::move(kv);
    }

  protected:
    // its windows are saved in every case
    void check_first(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const override {
        static_cast<const llama_kv_cache_iswa_minicache &>(*mem_attn).check_state(io, seq_id, flags);
    }
};

//
// creation
//

static std::unique_ptr<llama_kv_cache_iswa> create_iswa(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const layer_filter_cb & filter, const layer_reuse_cb & reuse) {
    std::unique_ptr<llama_kv_cache_minicache> kv(llama_kv_cache_minicache::create(
        model, params, cparams, [&](int32_t il) { return !model.hparams.is_swa(il) && (!filter || filter(il)); }, reuse));
    if (!kv) {
        return nullptr;
    }
    return std::make_unique<llama_kv_cache_iswa_minicache>(std::move(kv), model, params, cparams, filter, reuse);
}

llama_memory_i * llama_minicache_create_iswa(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const layer_filter_cb & filter, const layer_reuse_cb & reuse) {
    return create_iswa(model, params, cparams, filter, reuse).release();
}

llama_memory_i * llama_minicache_create_hybrid(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const layer_filter_cb & filter_attn, const layer_filter_cb & filter_recr) {
    const auto filter = [&](int32_t il) { return filter_attn ? filter_attn(il) : !model.hparams.is_recr(il); };

    if (model.hparams.swa_type != LLAMA_SWA_TYPE_NONE) {
        auto kv = create_iswa(model, params, cparams, filter, nullptr);
        return kv ? new llama_memory_hybrid_iswa_minicache(std::move(kv), model, params, cparams, filter_recr) : nullptr;
    }
    std::unique_ptr<llama_kv_cache_minicache> kv(llama_kv_cache_minicache::create(model, params, cparams, filter, nullptr));
    return kv ? new llama_memory_hybrid_minicache(std::move(kv), model, cparams, filter_recr) : nullptr;
}

//
// parts
//

minicache_memory_parts minicache_parts_of(llama_memory_i * memory) {
    minicache_memory_parts parts;

    llama_kv_cache_iswa * iswa = dynamic_cast<llama_kv_cache_iswa *>(memory);

    parts.grows = dynamic_cast<llama_kv_cache *>(memory);
    parts.state = dynamic_cast<llama_memory_recurrent *>(memory);
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        parts.grows = hybrid->get_mem_attn();
        parts.state = hybrid->get_mem_recr();
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        iswa        = hybrid->get_mem_attn();
        parts.state = hybrid->get_mem_recr();
    }
    if (iswa) {
        parts.grows  = iswa->get_base();
        parts.window = iswa->get_swa();
    }
    return parts;
}

llama_kv_cache_minicache * minicache_cache_of(llama_memory_i * memory) {
    return dynamic_cast<llama_kv_cache_minicache *>(minicache_parts_of(memory).grows);
}

const llama_kv_cache_context * minicache_context_of(const llama_memory_context_i * mctx) {
    const auto * iswa = dynamic_cast<const llama_kv_cache_iswa_context *>(mctx);
    const auto * kv   = dynamic_cast<const llama_kv_cache_context *>(mctx);
    if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid_context *>(mctx)) {
        kv = hybrid->get_attn();
    }
    if (const auto * hybrid = dynamic_cast<const llama_memory_hybrid_iswa_context *>(mctx)) {
        iswa = hybrid->get_attn();
    }
    if (iswa) {
        kv = iswa->get_base();
    }
    return kv && dynamic_cast<const llama_kv_cache_minicache *>(kv->get_kv()) ? kv : nullptr;
}
