#pragma once

// MiniCache's settings as the library keeps them: checked, owned, and as the calling thread or the environment asks for them.

#include "llama-minicache-plan.h"
#include "llama-minicache.h"

#include <optional>
#include <string>
#include <vector>

// the types that K and V may have
#define MINICACHE_CACHE_TYPES "f16, bf16, q8_0, q5_0, q5_1, q4_0, q4_1 or iq4_nl"

bool minicache_is_cache_type(ggml_type type);

// the cache type of this name; nothing where there is none
std::optional<ggml_type> minicache_cache_type_named(const std::string & name);

// The types of the first, or of the last, layers whose cache grows with the context.
struct minicache_edge {
    int32_t n_layer = 0;

    minicache_layer_types types = { GGML_TYPE_F16, GGML_TYPE_F16 };
};

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

    // of mode PLAIN; a layer of both is one of the first
    minicache_edge first;
    minicache_edge last;

    // decides groups, mode, t, retain, window and pool_type; null: none of them
    std::shared_ptr<const minicache_plan> plan;

    // set only by a text; a context takes its types from llama_context_params
    std::optional<ggml_type> type_k;
    std::optional<ggml_type> type_v;

    // the first layer that may be merged; throws std::invalid_argument where a layer number is none of the model's
    int32_t first_layer(int32_t n_layer) const;

    // cells that share a retained slot, 0 without a pool
    int32_t retain_block() const;

    // The types of a layer that is not merged: of its own, or the common ones.
    //   kept: the layers whose cache grows with the context
    minicache_layer_types types_of(int32_t il, const minicache_layers & kept, const minicache_layer_types & common) const;
};

int32_t minicache_start_layer(float start, int32_t n_layer);
int32_t minicache_retain_block(float retain);

// How many tokens the window of a plan holds, of this type, in a stream of so many cells; see llama_minicache_window_at().
int32_t minicache_window_at(int32_t window, ggml_type pool_type, int64_t n_cells);

// Takes over what the plan decides and checks the values; throws std::invalid_argument with the valid range.
void minicache_settings_finish(minicache_settings & settings);

// Both throw std::invalid_argument, saying what is wrong and what is valid.
minicache_settings minicache_settings_from(const llama_minicache_params & params);
minicache_settings minicache_settings_parse(const std::string & text);

// Whether the text of the environment variable leaves the cache a plain one: no text, 0 or off.
bool minicache_text_is_off(const std::string & text);

// what a context made by this thread now is to use; nothing: a plain cache
std::optional<minicache_settings> minicache_settings_requested();

void minicache_use(llama_minicache_use_kind use, const minicache_settings & settings);

llama_minicache_use_kind   minicache_used();
const minicache_settings & minicache_used_settings();
