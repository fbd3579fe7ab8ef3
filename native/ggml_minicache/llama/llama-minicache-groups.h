#pragma once

// Which layers are merged with which, and why others are not.

#include "llama-minicache-settings.h"

#include <string>
#include <vector>

struct llama_model;
struct llama_cparams;

struct minicache_layer {
    llama_minicache_layer_kind kind = LLAMA_MINICACHE_LAYER_NONE;

    minicache_layers group;  // that it is in, or was to be in
    std::string      reason;
};

struct minicache_grouping {
    std::vector<minicache_layer>  layers;  // all layers of the model
    std::vector<minicache_layers> groups;

    bool merged(int32_t il) const { return layers[il].kind == LLAMA_MINICACHE_LAYER_MERGED; }
};

// Throws std::invalid_argument if the settings name layers that the model does not have, or, with strict, if no group, or not
// every explicit pair, can be merged.
//   kept: the layers of the model whose cache is ours
minicache_grouping minicache_make_grouping(const llama_model & model, const llama_cparams & cparams, bool offload,
    const minicache_settings & settings, const minicache_layers & kept);

// What a layer keeps where nothing is merged.
llama_minicache_layer_kind minicache_kind_of(const llama_model & model, int32_t il);

// Why no layer of this model can be merged, "" if some can.
std::string minicache_why_not_model(const llama_model & model);

// The same for a model whose memory holds no cache that could be ours.
std::string minicache_why_not_memory(const llama_model & model);
