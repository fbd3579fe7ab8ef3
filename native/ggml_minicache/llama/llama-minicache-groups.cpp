#include "llama-minicache-groups.h"

#include "ggml-backend.h"
#include "llama-cparams.h"
#include "llama-minicache-rope.h"
#include "llama-model.h"

#include <stdexcept>

// Why two layers cannot share storage, "" if they can; for a layer and itself, why it cannot share any.
static std::string why_not_with(const llama_model & model, const llama_cparams & cparams, bool offload, uint32_t a, uint32_t b) {
    const llama_hparams & hp = model.hparams;

    if (!hp.has_kv(a) || !hp.has_kv(b)) {
        return "one of them keeps no K and V of its own";
    }
    if (hp.n_head_kv(a) != hp.n_head_kv(b)) {
        return "the layers differ in KV heads: " + std::to_string(hp.n_head_kv(a)) + " and " + std::to_string(hp.n_head_kv(b));
    }
    if (hp.n_embd_head_k(a) != hp.n_embd_head_k(b) || hp.n_embd_head_v(a) != hp.n_embd_head_v(b)) {
        return "the layers differ in head size";
    }
    // upstream rotates quantized rows only where all layers have one head size
    if (hp.n_embd_head_k(a) != hp.n_embd_head_k(0) || hp.n_embd_head_v(a) != hp.n_embd_head_v(0)) {
        return "the model's layers differ in head size";
    }
    if (hp.has_rope(a) != hp.has_rope(b) || hp.n_rot(a) != hp.n_rot(b) ||
        model.get_rope_freq_base(cparams, a) != model.get_rope_freq_base(cparams, b) ||
        model.get_rope_freq_scale(cparams, a) != model.get_rope_freq_scale(cparams, b)) {
        return "the layers differ in RoPE parameters";
    }
    if (hp.is_swa(a) || hp.is_swa(b)) {
        return "sliding-window layers are not merged";
    }
    if (offload && model.dev_layer(a) != model.dev_layer(b)) {
        return std::string("the layers lie on different devices: ") + ggml_backend_dev_name(model.dev_layer(a)) + " and " +
               ggml_backend_dev_name(model.dev_layer(b));
    }
    return "";
}

// "" if the layers can share storage
static std::string why_not(
    const llama_model & model, const llama_cparams & cparams, bool offload, bool coded, const minicache_layers & group) {
    if (coded && !minicache_rope_why_not(model).empty()) {
        return minicache_rope_why_not(model);
    }
    for (const int32_t il : group) {
        const std::string reason = why_not_with(model, cparams, offload, group[0], il);
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

static std::vector<minicache_layers> wanted_groups(const minicache_settings & settings, int32_t n_layer) {
    std::vector<minicache_layers> groups = settings.groups;

    for (const minicache_layers & group : groups) {
        if (group.back() >= n_layer) {
            throw std::invalid_argument("layer " + std::to_string(group.back()) + " is out of range: the model has layers 0 to " +
                                        std::to_string(n_layer - 1));
        }
    }
    if (groups.empty() && !settings.plan) {
        for (int32_t il = settings.first_layer(n_layer); il + 1 < n_layer; il += 2) {
            groups.push_back({ il, il + 1 });
        }
    }
    return groups;
}

minicache_grouping minicache_make_grouping(
    const llama_model & model, const llama_cparams & cparams, bool offload, const minicache_settings & settings) {
    const int32_t n_layer = model.hparams.n_layer();

    minicache_grouping grouping;
    grouping.layers.resize(n_layer);
    for (int32_t il = 0; il < n_layer; ++il) {
        grouping.layers[il].kind = model.hparams.has_kv(il) ? LLAMA_MINICACHE_LAYER_PLAIN : LLAMA_MINICACHE_LAYER_NONE;
    }

    if (settings.observe) {
        return grouping;
    }
    for (const minicache_layers & group : wanted_groups(settings, n_layer)) {
        const std::string reason = why_not(model, cparams, offload, settings.mode == LLAMA_MINICACHE_MODE_CODE, group);

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
            if (grouping.layers[il].kind == LLAMA_MINICACHE_LAYER_PLAIN) {
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
    if (llm_arch_is_hybrid(model.arch)) {
        return name + " mixes attention with recurrent layers, which is not supported";
    }
    if (model.hparams.swa_type != LLAMA_SWA_TYPE_NONE) {
        return name + " uses sliding-window attention, whose layers are not merged";
    }
    if (model.hparams.is_mla()) {
        return name + " keeps K and V in a latent form (MLA), which is not merged";
    }
    return name + " does not keep its K and V in a plain cache";
}
