#pragma once

// How RoPE turns the K of a layer: pair i of a head's numbers by the angle position*freq[i].

#include "minicache-code.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_cparams;
struct llama_model;

struct minicache_rope_turn {
    minicache_rope      kind  = MINICACHE_ROPE_NONE;
    int32_t             n_rot = 0;  // numbers of a head that RoPE turns
    std::vector<double> freq;       // [minicache_turn_pairs_of(kind, n_rot)], radians per position
};

// Whether RoPE turns a layer's K. Some models leave it out in the layers that look back over the whole context, which only the code of
// their graphs says.
bool minicache_has_rope(const llama_model & model, uint32_t il);

// Why minicache_rope_of() does not support this model, "" if it does.
std::string minicache_rope_why_not(const llama_model & model);

// How RoPE turns the K of layer il; without frequencies if the model was loaded without its weights. Throws std::runtime_error if memory runs out.
minicache_rope_turn minicache_rope_of(const llama_model & model, const llama_cparams & cparams, uint32_t il);
