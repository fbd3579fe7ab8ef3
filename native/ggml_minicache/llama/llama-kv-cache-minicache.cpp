#include "llama-kv-cache-minicache.h"

#include "ggml-minicache.h"
#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>

std::vector<ggml_tensor *> minicache_group::cell_tensors() const {
    return mag ? std::vector<ggml_tensor *>{ dir_k, dir_v, mag } : std::vector<ggml_tensor *>{ dir_k, dir_v };
}

const minicache_plan_group & minicache_group::source_in(const minicache_plan & plan) const {
    return *std::find_if(plan.groups.begin(), plan.groups.end(), [&](const auto & group) { return group.layers == layers; });
}

std::vector<ggml_tensor *> minicache_group::basis_tensors() const {
    std::vector<ggml_tensor *> all;
    for (int side = 0; side < 2; ++side) {
        for (ggml_tensor * basis : { basis_k[side], basis_v[side], basis_o[side] }) {
            if (basis) {
                all.push_back(basis);
            }
        }
    }
    return all;
}

std::vector<ggml_tensor *> minicache_group::pools() const {
    return pool_k ? std::vector<ggml_tensor *>{ pool_k, pool_v } : std::vector<ggml_tensor *>();
}

std::vector<ggml_tensor *> minicache_group::tensors() const {
    std::vector<ggml_tensor *> all = cell_tensors();
    all.push_back(slots);
    for (ggml_tensor * pool : pools()) {
        all.push_back(pool);
    }
    return all;
}

//
// construction
//

// The settings without the plan, whose matrices are large and are in the cache's own tensors by then.
static minicache_settings without_plan(minicache_settings settings) {
    settings.plan = nullptr;
    return settings;
}

llama_kv_cache_minicache::llama_kv_cache_minicache(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const minicache_layers & kept, const minicache_settings & settings,
    const minicache_grouping & grouping) :
    llama_kv_cache(
        model, model.hparams, params.type_k, params.type_v, /*v_trans =*/false, cparams.offload_kqv, cparams.kv_unified,
        cparams.n_ctx_seq, cparams.n_seq_max, /*n_pad =*/1, /*n_swa =*/0, LLAMA_SWA_TYPE_NONE, nullptr,
        [](int32_t) { return false; }, nullptr, nullptr),
    settings(without_plan(settings)), grouping(grouping),
    mode(grouping.groups.empty() ? LLAMA_MINICACHE_MODE_SLERP : settings.mode),
    rope_block(is_coded() ? settings.plan->rope_block : 0),
    model_hash(model.hparams.no_alloc ? 0 : std::stoull(minicache_fingerprint(model), nullptr, 16)),
    plan_hash(settings.plan ? settings.plan->hash : 0), cache_type_k(params.type_k), cache_type_v(params.type_v),
    block(settings.retain_block()),
    window(is_coded() ? minicache_window_at(settings.window, settings.pool_type, get_size()) : settings.window),
    group_of_layer(grouping.layers.size(), -1), source_of_layer(model.hparams.n_layer_all),
    own_op(model.hparams.n_layer_all, false) {
    std::iota(source_of_layer.begin(), source_of_layer.end(), 0);
    add_plain_layers(settings, kept, cparams.offload_kqv);
    add_groups();
    std::vector<minicache_rope_turn> turns;
    if (is_coded()) {
        turns = add_shapes(*settings.plan, cparams);
    }
    allocate(settings.plan.get(), cparams.offload_kqv);
    init_rotation();
    if (is_coded()) {
        offsets.assign(n_stream, std::vector<int32_t>(get_size()));
        write_codecs(*settings.plan, turns);
    }
    if (mode == LLAMA_MINICACHE_MODE_ALIGNED) {
        write_basis_matrices(*settings.plan);
    }

    LLAMA_LOG_INFO("%s: %s\n", __func__, describe().c_str());
}

void llama_kv_cache_minicache::add_groups() {
    for (const minicache_layers & layers : grouping.groups) {
        minicache_group group = {};
        group.layers          = layers;
        group.d_k             = hparams.n_embd_head_k(group.first());
        group.d_v             = hparams.n_embd_head_v(group.first());
        group.n_head_kv       = hparams.n_head_kv(group.first());
        for (const int32_t il : layers) {
            group_of_layer[il] = groups.size();
        }
        groups.push_back(group);
    }
}

// Some models have layers that keep no K and V and read another layer's.
void llama_kv_cache_minicache::add_readers(const layer_reuse_cb & reuse, const layer_filter_cb & filter) {
    for (int32_t il = 0; il < (int32_t) group_of_layer.size(); ++il) {
        const int32_t source = reuse && (!filter || filter(il)) ? reuse(il) : -1;
        if (source < 0) {
            continue;
        }
        source_of_layer[il] = source;
        group_of_layer[il]  = group_of_layer[source];
        own_op[il]          = own_op[source];
        if (group_of_layer[il] < 0) {
            map_layer_ids[il] = map_layer_ids.at(source);
        }
    }
}

std::vector<minicache_rope_turn> llama_kv_cache_minicache::add_shapes(
    const minicache_plan & plan, const llama_cparams & cparams) {
    std::vector<minicache_rope_turn> turns;
    for (minicache_group & group : groups) {
        turns.push_back(minicache_rope_of(model, cparams, group.first()));

        group.layouts     = group.source_in(plan).layouts;
        group.shape       = group.source_in(plan).shape;
        group.shape.n_rot = (int16_t) turns.back().n_rot;
        group.shape.rope  = turns.back().kind;
    }
    return turns;
}

// The first fallback is named in the log and in the report.
void llama_kv_cache_minicache::note_fallback(const std::string & what) {
    if (fallback.empty()) {
        fallback = what;
        LLAMA_LOG_WARN("%s: %s: attention of these layers runs on the CPU, which is SLOW for a model on that device\n", __func__,
            what.c_str());
    }
}

std::string llama_kv_cache_minicache::describe() const {
    if (is_coded()) {
        return format("%zu groups of layers coded, K relative to the last multiple of %d positions, one token in %d retained, "
                      "the latest %d exact, other layers K (%s), V (%s), %.2f MiB with them",
            groups.size(), rope_block, block, window, ggml_type_name(cache_type_k), ggml_type_name(cache_type_v),
            total_size() / 1024.0 / 1024.0);
    }
    const std::string how   = mode == LLAMA_MINICACHE_MODE_AVERAGE ? "averaged" : format("merged, t = %g", settings.t);
    const char *      basis = mode == LLAMA_MINICACHE_MODE_ALIGNED ? " with the plan's basis matrices" : "";
    const char *      shift = get_can_shift() ? "" : ", positions cannot be shifted";
    return format(
        "%zu pairs %s%s, one token in %d retained, the latest %d exact%s, K (%s), V (%s), %.2f MiB with the plain layers",
        groups.size(), how.c_str(), basis, block, window, shift, ggml_type_name(cache_type_k), ggml_type_name(cache_type_v),
        total_size() / 1024.0 / 1024.0);
}

//
// graph
//

int32_t llama_kv_cache_minicache::find_group(int32_t il) const {
    return il >= 0 && (size_t) il < group_of_layer.size() ? group_of_layer[il] : -1;
}

int64_t llama_kv_cache_minicache::get_n_slot() const { return window + ggml_minicache_n_slot(get_size(), block); }

void llama_kv_cache_minicache::set_offsets(const llama_ubatch & ubatch, const slot_info & sinfo) const {
    for (size_t s = 0; s < sinfo.n_stream(); ++s) {
        for (size_t i = 0; i < sinfo.size(); ++i) {
            const llama_pos pos = ubatch.pos[s * sinfo.size() + i];

            offsets[sinfo.strm[s]][sinfo.idxs[s][i]] = rope_block > 0 ? pos % rope_block : pos;
        }
    }
}

void llama_kv_cache_minicache::set_input_cells(ggml_tensor * dst, const slot_info & sinfo) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    const int64_t n_kv     = dst->ne[0];
    const int64_t n_stream = dst->ne[1];

    for (size_t s = 0; s < sinfo.n_stream(); ++s) {
        const uint32_t strm  = sinfo.strm[s];
        const auto &   cells = v_cells[strm];
        auto *         data  = (int32_t *) dst->data + (strm - sinfo.s0) * n_kv;

        for (int64_t i = 0; i < n_kv; ++i) {
            data[i] = cells.is_empty(i) ? GGML_MINICACHE_CELL_EMPTY : GGML_MINICACHE_CELL_MERGED;
        }
        for (size_t i = 0; i < sinfo.size(); ++i) {
            data[sinfo.idxs[s][i]] = (int32_t) i;
        }
        for (int64_t i = 0; i < n_kv && dst->ne[2] == 2; ++i) {
            data[n_stream * n_kv + i] = cells.is_empty(i) ? 0 : base_of(strm, i);
        }
    }
}

void llama_kv_cache_minicache::set_input_bases(ggml_tensor * dst, const slot_info & sinfo) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    for (size_t s = 0; s < sinfo.n_stream(); ++s) {
        for (size_t i = 0; i < sinfo.size(); ++i) {
            ((int32_t *) dst->data)[s * sinfo.size() + i] = base_of(sinfo.strm[s], sinfo.idxs[s][i]);
        }
    }
}

std::vector<int32_t> llama_kv_cache_minicache::read_slots(const minicache_group & group) const {
    std::vector<int32_t> slots(ggml_nelements(group.slots));
    if (hparams.no_alloc) {
        return slots;
    }
    ggml_backend_tensor_get(group.slots, slots.data(), 0, ggml_nbytes(group.slots));
    return slots;
}
