#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-memory-minicache.h"
#include "llama-minicache-env.h"
#include "llama-minicache-error.h"
#include "llama-model.h"

#include <algorithm>
#include <map>
#include <stdexcept>

// Whether a context gets our cache: what was requested, and why this model cannot have it.

static std::string not_a_cache_type(ggml_type type) {
    return std::string("cache type ") + ggml_type_name(type) + " is not supported: use " MINICACHE_CACHE_TYPES;
}

// the layers of this memory
static minicache_layers kept_layers(const llama_model & model, const llama_kv_cache::layer_filter_cb & filter) {
    minicache_layers kept;
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        if (model.hparams.has_kv(il) && (!filter || filter(il))) {
            kept.push_back((int32_t) il);
        }
    }
    return kept;
}

// Whether the heads of a layer can be of these types.
static bool fits_heads(const llama_model & model, int32_t il, ggml_type type_k, ggml_type type_v) {
    return model.hparams.n_head_kv(il) == 0 || (model.hparams.n_embd_head_k(il) % ggml_blck_size(type_k) == 0 &&
                                                   model.hparams.n_embd_head_v(il) % ggml_blck_size(type_v) == 0);
}

// Types of a layer's own, and the common ones, which windows of sliding-window layers have.
static void check_layer_types(const llama_model & model, const minicache_settings & settings, const minicache_layers & kept,
    const minicache_layer_types & common) {
    for (const auto & [il, own] : settings.plan ? settings.plan->plain : std::map<int32_t, minicache_layer_types>()) {
        GGML_UNUSED(own);
        if (std::find(kept.begin(), kept.end(), il) == kept.end()) {
            throw std::invalid_argument("the plan gives layer " + std::to_string(il) +
                                        " cache types of its own, but its cache does not grow with the context");
        }
    }
    const bool has_own = settings.plan || settings.mode == LLAMA_MINICACHE_MODE_PLAIN;
    for (int32_t il = 0; has_own && il < (int32_t) model.hparams.n_layer(); ++il) {
        const minicache_layer_types types =
            minicache_kind_of(model, il) == LLAMA_MINICACHE_LAYER_WINDOW ? common : settings.types_of(il, kept, common);
        for (const ggml_type type : { types.k, types.v }) {
            if (!minicache_is_cache_type(type)) {
                throw std::invalid_argument(not_a_cache_type(type));
            }
        }
        if (!fits_heads(model, il, types.k, types.v)) {
            throw std::invalid_argument(std::string("the cache types ") + ggml_type_name(types.k) + " and " +
                                        ggml_type_name(types.v) + " do not fit the head sizes of layer " + std::to_string(il));
        }
    }
}

static void check_types(const llama_model & model, const llama_memory_params & params, const minicache_settings & settings,
    const minicache_layers & kept) {
    for (const ggml_type type : { params.type_k, params.type_v }) {
        if (!minicache_is_cache_type(type)) {
            throw std::invalid_argument(not_a_cache_type(type));
        }
    }
    check_layer_types(model, settings, kept, { params.type_k, params.type_v });
}

// The type of retained K and V: as asked for, or f16 where the heads cannot have that, so that what works with an f16
// cache works without a word about the pool.
static ggml_type fitting_pool_type(const llama_model & model, ggml_type wanted, const minicache_layers & kept) {
    const bool fits = wanted == GGML_TYPE_COUNT ||
                      std::all_of(kept.begin(), kept.end(), [&](int32_t il) { return fits_heads(model, il, wanted, wanted); });
    return fits ? wanted : GGML_TYPE_F16;
}

// Keeps the reason why there will be no context, which becomes that of a failed llama_init_from_model().
static void note_refusal(const std::string & reason) {
    minicache_set_error(reason);
    if (minicache_env_decides()) {
        minicache_env_report(reason);
    }
}

static void warn(const std::string & message) {
    if (minicache_env_decides()) {
        minicache_env_report(message);
    } else {
        LLAMA_LOG_WARN("minicache: %s\n", message.c_str());
    }
}

// The environment variable is for all models of a process, such as a draft model beside its target, but a plan for one of them.
static bool is_for_another(const minicache_settings & settings, const llama_model & model) {
    if (!minicache_env_decides() || !settings.plan || settings.strict) {
        return false;
    }
    const std::string reason = minicache_why_not_plan(*settings.plan, model);
    if (!reason.empty() && !model.hparams.no_alloc) {  // it will be said when the weights are there
        minicache_env_report(reason + "; this model's cache is a plain one");
    }
    return !reason.empty();
}

// The settings for this context. A draft head keeps a plain cache of its own, of a layer or two.
static std::optional<minicache_settings> requested(const llama_memory_params & params, const llama_model & model) {
    if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return std::nullopt;
    }
    try {
        auto settings = minicache_settings_requested();
        return settings && is_for_another(*settings, model) ? std::nullopt : settings;
    } catch (const std::exception & e) {
        note_refusal(e.what());
        throw;
    }
}

llama_kv_cache_minicache * llama_kv_cache_minicache::create(const llama_model & model, const llama_memory_params & given,
    const llama_cparams & cparams, const layer_filter_cb & filter, const layer_reuse_cb & reuse) {
    auto settings = requested(given, model);

    if (!settings || model.hparams.is_mla()) {
        return nullptr;
    }
    const minicache_layers kept = kept_layers(model, filter);

    settings->pool_type        = fitting_pool_type(model, settings->pool_type, kept);
    llama_memory_params params = given;
    if (settings->plan) {
        params.type_k = settings->plan->type_k;
        params.type_v = settings->plan->type_v;
    }
    try {
        if (!cparams.flash_attn) {
            throw std::invalid_argument("MiniCache needs flash attention, which is switched off: set flash_attn=True in "
                                        "llama_cpp's Llama, -fa on in llama.cpp's programs, flash_attn_type in C");
        }
        check_types(model, params, *settings, kept);
        if (settings->plan) {
            minicache_check_plan(*settings->plan, model);
        }

        const minicache_grouping grouping    = minicache_make_grouping(model, cparams, cparams.offload_kqv, *settings, kept);
        const bool               merges_none = grouping.groups.empty() && !(settings->plan && settings->plan->groups.empty());
        if (merges_none && !settings->observe && settings->mode != LLAMA_MINICACHE_MODE_PLAIN) {
            warn("no two layers of this model can be merged, so its cache is a plain one");
        }
        auto kv = std::unique_ptr<llama_kv_cache_minicache>(
            new llama_kv_cache_minicache(model, params, cparams, kept, *settings, grouping));
        kv->add_readers(reuse, filter);
        const bool is_asked_for = !merges_none || settings->mode == LLAMA_MINICACHE_MODE_PLAIN;
        if (minicache_env_decides() && !model.hparams.no_alloc && is_asked_for) {
            minicache_env_report(minicache_describe_saving(model, *kv));
        }
        return kv.release();
    } catch (const std::bad_alloc &) {
        note_refusal(format("failed to allocate the %u cells of the KV cache in main memory", cparams.n_ctx));
        throw;
    } catch (const std::exception & e) {
        note_refusal(e.what());
        throw;
    }
}

void llama_kv_cache_minicache::check_created(
    llama_memory_i * created, const llama_model & model, const llama_memory_params & params) {
    std::unique_ptr<llama_memory_i> owned(created);

    // nothing is asked for a second time where the cache is ours: a plan in LLAMA_MINICACHE would be read again
    const bool is_ours  = minicache_cache_of(created) != nullptr;
    const auto settings = is_ours ? std::nullopt : requested(params, model);
    if (settings) {
        const std::string message = minicache_why_not_memory(model);
        if (settings->strict) {
            note_refusal(message);
            throw std::invalid_argument(message);
        }
        warn("MiniCache is off: " + message);
    }
    owned.release();
}
