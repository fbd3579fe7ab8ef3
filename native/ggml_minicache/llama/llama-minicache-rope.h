#pragma once

// How RoPE turns the K of a layer, as numbers: pair i of a head's numbers by position*freq[i].

#include "minicache-code.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_cparams;
struct llama_model;

struct minicache_rope_turn {
    minicache_rope      kind  = MINICACHE_ROPE_NONE;
    int32_t             n_rot = 0;  // numbers of a head that are turned
    std::vector<double> freq;       // [n_rot/2], radians per position
};

// "" where minicache_rope_of() knows how this model's K is turned, else why not
std::string minicache_rope_why_not(const llama_model & model);

minicache_rope_turn minicache_rope_of(const llama_model & model, const llama_cparams & cparams, uint32_t il);
