#include "llama-minicache-pairs.h"

#include "ggml-backend.h"
#include "llama-cparams.h"
#include "llama-minicache-rope.h"
#include "llama-model.h"

#include <stdexcept>

// "" if the layers can share one direction
static std::string why_not(
    const llama_model & model, const llama_cparams & cparams, bool offload, bool coded, uint32_t a, uint32_t b) {
    const llama_hparams & hp = model.hparams;

    if (coded && !minicache_rope_why_not(model).empty()) {
        return minicache_rope_why_not(model);
    }
    if (!hp.has_kv(a) || !hp.has_kv(b)) {
        return "one of the two keeps no K and V of its own";
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

static int32_t start_layer(const minicache_settings & settings, int32_t n_layer) {
    if (settings.start_layer < 0) {
        return (int32_t) (settings.start * n_layer);
    }
    if (settings.start_layer >= n_layer) {
        throw std::invalid_argument("start layer " + std::to_string(settings.start_layer) +
                                    " is out of range: the model has layers 0 to " + std::to_string(n_layer - 1));
    }
    return settings.start_layer;
}

static std::vector<std::pair<int32_t, int32_t>> wanted_pairs(const minicache_settings & settings, int32_t n_layer) {
    std::vector<std::pair<int32_t, int32_t>> pairs = settings.pairs;

    for (const auto & [a, b] : pairs) {
        if (b >= n_layer) {
            throw std::invalid_argument(
                "layer " + std::to_string(b) + " is out of range: the model has layers 0 to " + std::to_string(n_layer - 1));
        }
    }
    if (pairs.empty() && !settings.plan) {
        for (int32_t il = start_layer(settings, n_layer); il + 1 < n_layer; il += 2) {
            pairs.emplace_back(il, il + 1);
        }
    }
    return pairs;
}

minicache_pairing minicache_make_pairing(
    const llama_model & model, const llama_cparams & cparams, bool offload, const minicache_settings & settings) {
    const int32_t n_layer = model.hparams.n_layer();

    minicache_pairing pairing;
    pairing.layers.resize(n_layer);
    for (int32_t il = 0; il < n_layer; ++il) {
        pairing.layers[il].kind = model.hparams.has_kv(il) ? LLAMA_MINICACHE_LAYER_PLAIN : LLAMA_MINICACHE_LAYER_NONE;
    }

    if (settings.observe) {
        return pairing;
    }
    for (const auto & [a, b] : wanted_pairs(settings, n_layer)) {
        const std::string reason = why_not(model, cparams, offload, settings.mode == LLAMA_MINICACHE_MODE_CODE, a, b);

        if (reason.empty()) {
            pairing.pairs.emplace_back(a, b);
            pairing.layers[a] = { LLAMA_MINICACHE_LAYER_MERGED_A, b, "" };
            pairing.layers[b] = { LLAMA_MINICACHE_LAYER_MERGED_B, a, "" };
            continue;
        }
        if (settings.strict && !settings.pairs.empty()) {
            throw std::invalid_argument(
                "layers " + std::to_string(a) + " and " + std::to_string(b) + " cannot be merged: " + reason);
        }
        for (const auto & [il, partner] : { std::make_pair(a, b), std::make_pair(b, a) }) {
            if (pairing.layers[il].kind == LLAMA_MINICACHE_LAYER_PLAIN) {
                pairing.layers[il] = { LLAMA_MINICACHE_LAYER_REFUSED, partner, reason };
            }
        }
    }

    if (settings.strict && pairing.pairs.empty()) {
        throw std::invalid_argument("no two layers of this model can be merged with these settings, and strict was asked for");
    }
    return pairing;
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
