#pragma once

// MiniCache parameters as the library keeps them: checked, owned, and what the calling thread or the environment asks for.

#include "llama-minicache-plan.h"
#include "llama-minicache.h"

#include <optional>
#include <string>
#include <vector>

struct minicache_settings {
    float   start       = 0.5f;
    int32_t start_layer = -1;

    std::vector<minicache_layers> groups;  // pairs { a, b }, or a plan's groups; empty: pairs from the start layer on

    float t      = 0.6f;
    float retain = 0.05f;

    int32_t window = 0;

    ggml_type pool_type = GGML_TYPE_Q8_0;  // GGML_TYPE_COUNT: the cache types

    bool strict = false;

    bool observe = false;  // merge nothing, name what attention gets

    llama_minicache_mode mode = LLAMA_MINICACHE_MODE_SLERP;

    // decides groups, mode, t, retain and pool_type; null: none of them
    std::shared_ptr<const minicache_plan> plan;

    // cells that share a retained slot, 0 without a pool
    int32_t retain_block() const;
};

// Both throw std::invalid_argument with the valid range.
minicache_settings minicache_settings_from(const llama_minicache_params & params);
minicache_settings minicache_settings_parse(const char * text);

// what a context made by this thread now is to use; nothing: a plain cache
std::optional<minicache_settings> minicache_settings_requested();

void minicache_use(llama_minicache_use_kind use, const minicache_settings & settings);

llama_minicache_use_kind   minicache_used();
const minicache_settings & minicache_used_settings();
