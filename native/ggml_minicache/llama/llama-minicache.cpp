#include "llama-minicache.h"

#include "llama-context.h"
#include "llama-minicache-error.h"
#include "llama-minicache-guard.h"
#include "llama-minicache-settings.h"
#include "llama-minicache-rope.h"
#include "llama-model.h"
#include "minicache-window.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

static llama_minicache_edge edge_of(const minicache_edge & edge) { return { edge.n_layer, edge.types.k, edge.types.v }; }

llama_minicache_params llama_minicache_default_params(void) {
    const minicache_settings s;

    return {
        /*.start       =*/s.start,
        /*.start_layer =*/s.start_layer,
        /*.pairs       =*/nullptr,
        /*.n_pairs     =*/0,
        /*.t           =*/s.t,
        /*.retain      =*/s.retain,
        /*.window      =*/s.window,
        /*.pool_type   =*/s.pool_type,
        /*.strict      =*/s.strict,
        /*.mode        =*/s.mode,
        /*.plan        =*/nullptr,
        /*.observe     =*/false,
        /*.first       =*/edge_of(s.first),
        /*.last        =*/edge_of(s.last),
    };
}

const char * llama_minicache_last_error(void) { return minicache_get_error().c_str(); }

llama_minicache_plan * llama_minicache_read_plan(const char * path) {
    llama_minicache_plan * plan = nullptr;
    minicache_guarded([&] {
        if (!path) {
            throw std::invalid_argument("path must not be NULL");
        }
        plan = new llama_minicache_plan{ minicache_read_plan(path) };
    });
    return plan;
}

void llama_minicache_free_plan(llama_minicache_plan * plan) { delete plan; }

const char * llama_minicache_plan_path(const llama_minicache_plan * plan) { return plan ? plan->plan->path.c_str() : ""; }

const void * llama_minicache_plan_header(const llama_minicache_plan * plan, size_t * n_bytes) {
    if (n_bytes) {
        *n_bytes = plan ? plan->plan->header.size() : 0;
    }
    return plan ? plan->plan->header.data() : nullptr;
}

bool llama_minicache_parse_params(const char * text, llama_minicache_params * params, ggml_type * type_k, ggml_type * type_v) {
    static thread_local std::vector<int32_t> pairs;

    return minicache_guarded([&] {
        if (!text || !params) {
            throw std::invalid_argument("text and params must not be NULL");
        }
        const minicache_settings s = minicache_settings_parse(text);
        if ((s.type_k && !type_k) || (s.type_v && !type_v)) {
            throw std::invalid_argument("type, type_k and type_v are not settings here: leave them out");
        }
        pairs.clear();
        for (const minicache_layers & pair : s.plan ? std::vector<minicache_layers>() : s.groups) {
            pairs.insert(pairs.end(), pair.begin(), pair.end());
        }
        if (type_k) {
            *type_k = s.type_k.value_or(GGML_TYPE_COUNT);
        }
        if (type_v) {
            *type_v = s.type_v.value_or(GGML_TYPE_COUNT);
        }
        *params = { s.start, s.start_layer, pairs.empty() ? nullptr : pairs.data(), (int32_t) pairs.size() / 2, s.t, s.retain,
            s.window, s.pool_type, s.strict, s.mode, s.plan ? new llama_minicache_plan{ s.plan } : nullptr, /*.observe =*/false,
            edge_of(s.first), edge_of(s.last) };
    });
}

bool llama_minicache_check_params(const llama_minicache_params * params) {
    return minicache_guarded([&] {
        if (!params) {
            throw std::invalid_argument("params must not be NULL");
        }
        minicache_settings_from(*params);
    });
}

int32_t llama_minicache_start_layer(float start, int32_t n_layer) { return minicache_start_layer(start, n_layer); }

int32_t llama_minicache_retain_block(float retain) { return minicache_retain_block(retain); }

int32_t llama_minicache_window_at(int32_t window, ggml_type pool_type, uint32_t n_cells) {
    return minicache_window_at(window, pool_type, n_cells);
}

int32_t llama_minicache_window_first(int32_t window) { return minicache_window_first(window); }

bool llama_minicache_fingerprint(const llama_model * model, char * buffer) {
    return minicache_guarded([&] {
        if (!model || !buffer) {
            throw std::invalid_argument("model and buffer must not be NULL");
        }
        const std::string fingerprint = minicache_fingerprint(*model);
        memcpy(buffer, fingerprint.c_str(), fingerprint.size() + 1);
    });
}

bool llama_minicache_get_rope(const llama_context * ctx, int32_t il, int32_t * kind, int32_t * n_pair, double * freq) {
    return minicache_guarded([&] {
        if (!ctx || !kind || !n_pair || !freq) {
            throw std::invalid_argument("ctx, kind, n_pair and freq must not be NULL");
        }
        const llama_model & model   = *llama_get_model(ctx);
        const std::string   unknown = minicache_rope_why_not(model);
        if (!unknown.empty()) {
            throw std::invalid_argument(unknown);
        }
        if (model.hparams.no_alloc) {
            throw std::invalid_argument("the model was loaded without its weights, of which RoPE's frequencies are a part");
        }
        if (il < 0 || il >= (int32_t) model.hparams.n_layer()) {
            throw std::invalid_argument("layer " + std::to_string(il) + " is out of range");
        }
        const minicache_rope_turn turn = minicache_rope_of(model, ctx->get_cparams(), il);

        *kind   = turn.kind;
        *n_pair = (int32_t) turn.freq.size();
        std::copy(turn.freq.begin(), turn.freq.end(), freq);
    });
}

bool llama_minicache_use(enum llama_minicache_use_kind use, const llama_minicache_params * params) {
    return minicache_guarded([&] {
        if (use == LLAMA_MINICACHE_USE_PARAMS && !params) {
            throw std::invalid_argument("params must not be NULL");
        }
        minicache_use(use, use == LLAMA_MINICACHE_USE_PARAMS ? minicache_settings_from(*params) : minicache_settings());
    });
}

llama_context * llama_minicache_init_from_model(
    llama_model * model, llama_context_params cparams, const llama_minicache_params * params) {
    const llama_minicache_use_kind use_before      = minicache_used();
    const minicache_settings       settings_before = minicache_used_settings();

    if (!llama_minicache_use(params ? LLAMA_MINICACHE_USE_PARAMS : LLAMA_MINICACHE_USE_OFF, params)) {
        return nullptr;
    }
    if (cparams.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_AUTO) {
        cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    llama_context * ctx = nullptr;
    minicache_guarded([&] { minicache_guard_aborts([&] { ctx = llama_init_from_model(model, cparams); }); });

    minicache_use(use_before, settings_before);

    if (!ctx && minicache_get_error().empty()) {
        minicache_set_error("llama.cpp could not make the context: its log says why");
    }
    return ctx;
}
