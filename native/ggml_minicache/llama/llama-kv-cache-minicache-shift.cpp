#include "llama-kv-cache-minicache.h"

#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>

// Updates of a cache between batches: copies of streams, and shifts of K to new positions.

bool llama_kv_cache_minicache::get_can_shift() const {
    const bool turned = mode == LLAMA_MINICACHE_MODE_ALIGNED && hparams.rope_type != LLAMA_ROPE_TYPE_NONE;
    const bool bf16   = std::any_of(layers.begin(), layers.end(),
        [&](const kv_layer & layer) { return layer.k->type == GGML_TYPE_BF16 && minicache_has_rope(model, layer.il); });
    return !turned && !bf16 && llama_kv_cache::get_can_shift();
}

bool llama_kv_cache_minicache::update(llama_context * lctx, bool do_shift, const stream_copy_info & sc_info) {
    if (!sc_info.empty()) {
        llama_synchronize(lctx);
    }
    for (size_t i = 0; i < sc_info.ssrc.size(); ++i) {
        for (const minicache_group & group : groups) {
            for (ggml_tensor * x : group.tensors()) {
                std::vector<uint8_t> stream(x->nb[2]);
                for (int64_t side = 0; side < x->ne[3]; ++side) {
                    const size_t from = side * x->nb[3];
                    ggml_backend_tensor_get(x, stream.data(), from + sc_info.ssrc[i] * x->nb[2], x->nb[2]);
                    ggml_backend_tensor_set(x, stream.data(), from + sc_info.sdst[i] * x->nb[2], x->nb[2]);
                }
            }
        }
        if (is_coded()) {
            offsets[sc_info.sdst[i]] = offsets[sc_info.ssrc[i]];
        }
    }
    // A code holds K relative to its base, and a shift moves only the base. If nothing else holds K, there is nothing to compute.
    if (do_shift && layers.empty() && is_coded() && get_n_slot() == 0) {
        for (uint32_t s = 0; s < n_stream; ++s) {
            v_cells[s].reset_shift();
        }
        do_shift = false;
    }
    return llama_kv_cache::update(lctx, do_shift, sc_info);
}

void llama_kv_cache_minicache::set_input_slot_shift(ggml_tensor * dst, const minicache_group & group) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    const int64_t n_slot = get_n_slot();
    const int64_t n_row  = group.slots->ne[1];

    const std::vector<int32_t> slots = read_slots(group);

    for (uint32_t s = 0; s < n_stream; ++s) {
        for (int64_t i = 0; i < n_slot; ++i) {
            const int32_t cell                      = slots[2 * (s * n_row + i)] - 1;
            ((int32_t *) dst->data)[s * n_slot + i] = cell < 0 || v_cells[s].is_empty(cell) ? 0 : v_cells[s].get_shift(cell);
        }
    }
}

class llm_graph_input_k_shift_minicache : public llm_graph_input_i {
  public:
    llm_graph_input_k_shift_minicache(const llama_kv_cache_minicache * kv) : kv(kv) {}

    void set_input(const llama_ubatch * ubatch) override {
        GGML_UNUSED(ubatch);

        // an input that no layer uses is not allocated
        if (cell_shift->buffer) {
            kv->set_input_k_shift(cell_shift);
        }
        for (const auto & [group, shift] : slot_shift) {
            kv->set_input_slot_shift(shift, *group);
        }
        if (rot && rot->buffer) {
            kv->set_input_k_rot(rot);
        }
    }

    ggml_tensor * cell_shift;  // I32 [kv_size*n_stream]
    ggml_tensor * rot;         // llama.cpp's rotation of K, or null

    std::vector<std::pair<const minicache_group *, ggml_tensor *>> slot_shift;  // I32 [n_slot*n_stream]

    const llama_kv_cache_minicache * kv;
};

// The factor of RoPE's result that leaves the length of K as it is. With YaRN, RoPE also lengthens K. That happened when the token was
// stored, so a shift must not repeat it, as llama.cpp's own does.
static float unscaled(const llama_cparams & cparams, float freq_scale) {
    return cparams.yarn_ext_factor == 0.0f ? 1.0f : 1.0f / (1.0f + 0.1f * std::log(1.0f / freq_scale));
}

ggml_cgraph * llama_kv_cache_minicache::build_graph_shift(llm_graph_result * res, llama_context * lctx) const {
    // the base class relies on having a layer
    ggml_cgraph *  gf  = layers.empty() ? res->get_gf() : llama_kv_cache::build_graph_shift(res, lctx);
    ggml_context * ctx = res->get_ctx();

    const auto & cparams = lctx->get_cparams();

    auto inp = std::make_unique<llm_graph_input_k_shift_minicache>(this);

    inp->rot        = build_input_k_rot(ctx);
    inp->cell_shift = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (int64_t) get_size() * n_stream);
    ggml_set_input(inp->cell_shift);

    // M-RoPE is shifted as NEOX, as llama.cpp does
    const bool is_mrope  = hparams.rope_type == LLAMA_ROPE_TYPE_MROPE || hparams.rope_type == LLAMA_ROPE_TYPE_IMROPE;
    const int  rope_type = is_mrope ? (int) LLAMA_ROPE_TYPE_NEOX : (int) hparams.rope_type;

    // RoPE by a shift is linear and the same for all layers of a group, so it turns their common direction in the way that it
    // turns the K of each of them.
    const auto shift_rows = [&](const minicache_group & group, ggml_tensor * k, ggml_tensor * shift) {
        const uint32_t il  = group.first();
        ggml_tensor *  rot = rotates_k(il) ? inp->rot : nullptr;

        const float freq_scale = model.get_rope_freq_scale(cparams, il);

        ggml_tensor * rows = ggml_reshape_3d(ctx, k, group.d_k, group.n_head_kv, k->ne[1] * k->ne[2]);
        ggml_tensor * cur  = ggml_cast(ctx, rows, GGML_TYPE_F32);
        if (rot) {
            cur = llama_mul_mat_hadamard(ctx, cur, rot);
        }
        cur = ggml_rope_ext(ctx, cur, shift, model.get_rope_factors(cparams, il), hparams.n_rot(il), rope_type,
            cparams.n_ctx_orig_yarn, model.get_rope_freq_base(cparams, il), freq_scale, cparams.yarn_ext_factor,
            unscaled(cparams, freq_scale), cparams.yarn_beta_fast, cparams.yarn_beta_slow);
        if (rot) {
            cur = llama_mul_mat_hadamard(ctx, cur, rot);
        }
        ggml_build_forward_expand(gf, ggml_cpy(ctx, cur, rows));
    };

    for (const minicache_group & group : groups) {
        if (!minicache_has_rope(model, group.first())) {
            continue;
        }
        if (!group.is_coded()) {
            shift_rows(group, group.dir_k, inp->cell_shift);
        }
        if (get_n_slot() > 0) {
            ggml_tensor * slot_shift = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, get_n_slot() * n_stream);
            ggml_set_input(slot_shift);
            inp->slot_shift.emplace_back(&group, slot_shift);

            for (int32_t side = 0; side < group.n_layer(); ++side) {
                ggml_tensor * pool = group.pool_k;
                shift_rows(group,
                    ggml_view_3d(ctx, pool, pool->ne[0], pool->ne[1], pool->ne[2], pool->nb[1], pool->nb[2], side * pool->nb[3]),
                    slot_shift);
            }
        }
    }

    res->add_input(std::move(inp));

    return gf;
}
