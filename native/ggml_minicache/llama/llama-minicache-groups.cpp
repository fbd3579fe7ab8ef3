#include "llama-minicache-groups.h"

#include "ggml-backend.h"
#include "llama-cparams.h"
#include "llama-minicache-rope.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

llama_minicache_layer_kind minicache_kind_of(const llama_model & model, int32_t il) {
    const llama_hparams & hp = model.hparams;
    if (!hp.has_kv(il)) {
        return LLAMA_MINICACHE_LAYER_NONE;
    }
    if (hp.is_swa(il)) {
        return LLAMA_MINICACHE_LAYER_WINDOW;
    }
    // Falcon-H1's layers have both
    if (hp.is_recr(il) && model.arch != LLM_ARCH_FALCON_H1) {
        return LLAMA_MINICACHE_LAYER_STATE;
    }
    return hp.n_head_kv(il) > 0 ? LLAMA_MINICACHE_LAYER_PLAIN : LLAMA_MINICACHE_LAYER_NONE;
}

static bool contains(const minicache_layers & layers, int32_t il) {
    return std::find(layers.begin(), layers.end(), il) != layers.end();
}

// Why two layers cannot share storage, "" if they can; for a layer and itself, why it cannot share any.
static std::string why_not_with(
    const llama_model & model, const llama_cparams & cparams, bool offload, const minicache_layers & kept, int32_t a, int32_t b) {
    const llama_hparams & hp = model.hparams;

    if (hp.is_swa(a) || hp.is_swa(b)) {
        return "sliding-window layers are not merged: their cache does not grow with the context";
    }
    if (!contains(kept, a) || !contains(kept, b)) {
        return "one of them keeps no K and V of its own";
    }
    if (hp.n_head_kv(a) != hp.n_head_kv(b)) {
        return "the layers differ in KV heads: " + std::to_string(hp.n_head_kv(a)) + " and " + std::to_string(hp.n_head_kv(b));
    }
    if (hp.n_embd_head_k(a) != hp.n_embd_head_k(b) || hp.n_embd_head_v(a) != hp.n_embd_head_v(b)) {
        return "the layers differ in head size";
    }
    // upstream rotates quantized rows only where all layers of a cache have one head size
    if (hp.n_embd_head_k(a) != hp.n_embd_head_k(kept[0]) || hp.n_embd_head_v(a) != hp.n_embd_head_v(kept[0])) {
        return "the model's layers differ in head size";
    }
    if (minicache_has_rope(model, a) != minicache_has_rope(model, b) || hp.n_rot(a) != hp.n_rot(b) ||
        model.get_rope_freq_base(cparams, a) != model.get_rope_freq_base(cparams, b) ||
        model.get_rope_freq_scale(cparams, a) != model.get_rope_freq_scale(cparams, b)) {
        return "the layers differ in RoPE parameters";
    }
    if (offload && model.dev_layer(a) != model.dev_layer(b)) {
        return std::string("the layers lie on different devices: ") + ggml_backend_dev_name(model.dev_layer(a)) + " and " +
               ggml_backend_dev_name(model.dev_layer(b));
    }
    return "";
}

// "" if the layers can share storage
static std::string why_not(const llama_model & model, const llama_cparams & cparams, bool offload, bool coded,
    const minicache_layers & kept, const minicache_layers & group) {
    if (coded && !minicache_rope_why_not(model).empty()) {
        return minicache_rope_why_not(model);
    }
    for (const int32_t il : group) {
        const std::string reason = why_not_with(model, cparams, offload, kept, group[0], il);
        if (!reason.empty()) {
            return reason;
        }
    }
    return "";
}

static std::string names_of(const minicache_layers & group) {
    std::string names = group.size() > 1 ? "layers" : "layer";
    for (size_t i = 0; i < group.size(); ++i) {
        names += (i == 0 ? " " : i + 1 < group.size() ? ", " : " and ") + std::to_string(group[i]);
    }
    return names;
}

// Without a plan, pairs of neighbours among the layers whose cache grows with the context, from the start layer on.
static std::vector<minicache_layers> wanted_groups(
    const minicache_settings & settings, int32_t n_layer, const minicache_layers & growing) {
    std::vector<minicache_layers> groups = settings.groups;

    for (const minicache_layers & group : groups) {
        if (group.back() >= n_layer) {
            throw std::invalid_argument("layer " + std::to_string(group.back()) + " is out of range: the model has layers 0 to " +
                                        std::to_string(n_layer - 1));
        }
    }
    if (groups.empty() && !settings.plan) {
        const int32_t first = settings.first_layer(n_layer);
        for (size_t i = 0; i + 1 < growing.size();) {
            if (growing[i] < first) {
                ++i;
                continue;
            }
            groups.push_back({ growing[i], growing[i + 1] });
            i += 2;
        }
    }
    return groups;
}

minicache_grouping minicache_make_grouping(const llama_model & model, const llama_cparams & cparams, bool offload,
    const minicache_settings & settings, const minicache_layers & kept) {
    const int32_t n_layer = model.hparams.n_layer();

    minicache_grouping grouping;
    minicache_layers   growing;
    grouping.layers.resize(n_layer);
    for (int32_t il = 0; il < n_layer; ++il) {
        grouping.layers[il].kind = contains(kept, il) ? LLAMA_MINICACHE_LAYER_PLAIN : minicache_kind_of(model, il);
        if (contains(kept, il)) {
            growing.push_back(il);
        }
    }

    if (settings.observe || settings.mode == LLAMA_MINICACHE_MODE_PLAIN) {
        return grouping;
    }
    for (const minicache_layers & group : wanted_groups(settings, n_layer, growing)) {
        const std::string reason = why_not(model, cparams, offload, settings.mode == LLAMA_MINICACHE_MODE_CODE, kept, group);

        if (reason.empty()) {
            grouping.groups.push_back(group);
            for (const int32_t il : group) {
                grouping.layers[il] = { LLAMA_MINICACHE_LAYER_MERGED, group, "" };
            }
            continue;
        }
        if (settings.strict && !settings.groups.empty()) {
            throw std::invalid_argument(names_of(group) + " cannot be merged: " + reason);
        }
        for (const int32_t il : group) {
            if (contains(kept, il)) {
                grouping.layers[il] = { LLAMA_MINICACHE_LAYER_REFUSED, group, reason };
            }
        }
    }

    if (settings.strict && grouping.groups.empty()) {
        throw std::invalid_argument("no two layers of this model can be merged with these settings, and strict was asked for");
    }
    return grouping;
}

std::string minicache_why_not_model(const llama_model & model) {
    const std::string name = model.arch_name();

    if (llm_arch_is_recurrent(model.arch)) {
        return name + " is recurrent: it keeps no K and V";
    }
    if (model.hparams.is_mla()) {
        return name + " keeps K and V in a latent form (MLA), which is not merged";
    }
    switch (model.arch) {
        case LLM_ARCH_MINIMAX_M3:
        case LLM_ARCH_GLM_DSA:
        case LLM_ARCH_DEEPSEEK32:
        case LLM_ARCH_DEEPSEEK4:
        case LLM_ARCH_GLM5_NEXT:
        case LLM_ARCH_HY_V4:
        case LLM_ARCH_DOTS3NOTE:
        case LLM_ARCH_QWEN4EXP:
            return name + " has sparse attention, whose cache is not merged";
        case LLM_ARCH_DFLASH:
            return name + " is a draft model, whose cache is not merged";
        default:
            break;
    }
    if (model.hparams.causal_attn) {
        return "";
    }
    return name + " is an encoder: it keeps no K and V";
}

std::string minicache_why_not_memory(const llama_model & model) {
    const std::string reason = minicache_why_not_model(model);
    return reason.empty() ? std::string(model.arch_name()) + " does not keep its K and V in a plain cache" : reason;
}
