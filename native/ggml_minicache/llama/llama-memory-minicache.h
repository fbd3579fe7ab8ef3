#pragma once

// The memories of llama.cpp that hold our cache beside something else: a cache of sliding-window layers (iSWA), a recurrent state
// (hybrid), or both. The part whose size grows with the context is ours, the rest stays llama.cpp's.

#include "llama-kv-cache-minicache.h"
#include "llama-memory.h"

class llama_memory_recurrent;

// The parts of a memory; null where it has none of a kind, all null for memories that do not hold rows of K and V.
struct minicache_memory_parts {
    llama_kv_cache *         grows  = nullptr;  // of the layers that keep all tokens
    llama_kv_cache *         window = nullptr;  // of sliding-window layers
    llama_memory_recurrent * state  = nullptr;
};

minicache_memory_parts minicache_parts_of(llama_memory_i * memory);

// null if the memory holds no cache of ours
llama_kv_cache_minicache * minicache_cache_of(llama_memory_i * memory);

// The context of our cache in that of the memory that holds it, null if none is ours.
const llama_kv_cache_context * minicache_context_of(const llama_memory_context_i * mctx);

// Both return null if the settings do not ask for MiniCache, and throw std::invalid_argument if they do not fit the model or the
// context, as llama_kv_cache_minicache::create() does.
//   filter, reuse, filter_attn, filter_recr: as llama_model::create_memory() makes them; may be null
llama_memory_i * llama_minicache_create_iswa(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const llama_memory_i::layer_filter_cb & filter, const llama_memory_i::layer_reuse_cb & reuse);
llama_memory_i * llama_minicache_create_hybrid(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const llama_memory_i::layer_filter_cb & filter_attn,
    const llama_memory_i::layer_filter_cb & filter_recr);
