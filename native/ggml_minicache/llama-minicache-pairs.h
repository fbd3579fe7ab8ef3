#pragma once

// Which layers are merged with which, and why others are not.

#include "llama-minicache-params.h"

#include <string>
#include <vector>

struct llama_model;
struct llama_cparams;

struct minicache_layer {
    llama_minicache_layer_kind kind    = LLAMA_MINICACHE_LAYER_NONE;
    int32_t                    partner = -1;
    std::string                reason;
};

struct minicache_pairing {
    std::vector<minicache_layer>               layers;  // all layers of the model
    std::vector<std::pair<uint32_t, uint32_t>> pairs;   // { a, b }, b the deeper

    bool merged(int32_t il) const {
        const auto kind = layers[il].kind;
        return kind == LLAMA_MINICACHE_LAYER_MERGED_A || kind == LLAMA_MINICACHE_LAYER_MERGED_B;
    }
};

// Throws std::invalid_argument where the settings name layers the model does not have, and, if strict, where no pair or not
// every explicit pair can be merged.
minicache_pairing minicache_make_pairing(
    const llama_model & model, const llama_cparams & cparams, bool offload, const minicache_settings & settings);

// Why this model's memory keeps no merged layers at all, for one whose K and V are not in a plain cache.
std::string minicache_why_not_model(const llama_model & model);
