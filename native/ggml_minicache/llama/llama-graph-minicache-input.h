#pragma once

#include "llama-graph.h"
#include "llama-memory-minicache.h"

// What our layers need in a graph beside llama.cpp's own inputs. Each graph of a MiniCache context has one, whichever
// of llama.cpp's memories holds our cache.
class llm_graph_input_minicache : public llm_graph_input_i {
  public:
    llm_graph_input_minicache(
        const llm_graph_context & graph, const llama_kv_cache_minicache * kv, const llama_kv_cache_context * mctx);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    // The graph's one, made by the first layer that needs it; null if `mctx` is not of a cache of ours.
    static llm_graph_input_minicache * of(const llm_graph_context & graph, const llama_kv_cache_context * mctx);

    const llama_kv_cache_minicache * kv;
    const llama_kv_cache_context *   mctx;

    ggml_tensor * cells = nullptr;  // I32 [n_kv, n_stream], or [n_kv, n_stream, 2] with the cells' bases
    ggml_tensor * bases = nullptr;  // I32 [n_tokens], null without coded groups

    // rotations of K and V, where llama.cpp makes none for a memory whose cache rotates
    ggml_tensor * k_rot = nullptr;
    ggml_tensor * v_rot = nullptr;

    // for each group, from its first layer to its last
    std::vector<std::vector<ggml_tensor *>> kv_cur;  // each layer's so far, F32 [(d_k + d_v)*n_head_kv, n_tokens]
    std::vector<ggml_tensor *>              index;   // as cells, of the slots as they are at this place of the graph, or null
};
