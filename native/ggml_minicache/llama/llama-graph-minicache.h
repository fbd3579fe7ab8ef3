#pragma once

#include "llama-graph.h"

class llm_graph_input_minicache;

// One layer's attention as llm_graph_context::build_attn() builds it, from the rotation of Q, K and V to that of its result.
//
// llama.cpp rotates K and V whenever its input has a rotation; here only some layers have one. So the input's rotations are this
// layer's as long as this object lives.
class llama_minicache_layer {
  public:
    llama_minicache_layer(const llm_graph_context & graph, llm_graph_input_attn_kv * inp, int il);
    llama_minicache_layer(const llm_graph_context & graph, llm_graph_input_attn_kv_iswa * inp, int il);
    ~llama_minicache_layer();

    llama_minicache_layer(const llama_minicache_layer &)             = delete;
    llama_minicache_layer & operator=(const llama_minicache_layer &) = delete;

    // Builds the attention of a layer of a MiniCache context, F32 [d_v*n_head, n_tokens], after llama.cpp's rotations if the layer
    // has them. The deepest layer of a group also merges and stores; a plain layer in main memory stores and attends by our
    // kernels. Returns null for any other layer, which llama.cpp builds itself. Throws std::runtime_error for a merged layer with
    // a KQ bias.
    //   q_cur F32 [d_k, n_head, n_tokens]; k_cur F32 [d_k, n_head_kv, n_tokens] and v_cur F32 [d_v, n_head_kv, n_tokens], null in
    //   a layer that reads the K and V of another one
    ggml_tensor * build_attn(ggml_tensor * q_cur, ggml_tensor * k_cur, ggml_tensor * v_cur, ggml_tensor * kq_b,
        ggml_tensor * sinks, float kq_scale) const;

  private:
    void begin(const llama_kv_cache_context * mctx, ggml_tensor *& k_rot, ggml_tensor *& v_rot);

    const llm_graph_context &   graph;
    const int                   il;
    llm_graph_input_minicache * inp = nullptr;  // null where the layer's cache is not ours

    // what llama.cpp's input has for the indices and mask of this layer's cache
    ggml_tensor * k_idxs  = nullptr;
    ggml_tensor * v_idxs  = nullptr;
    ggml_tensor * kq_mask = nullptr;

    // llama.cpp's rotations, and where its input has them
    ggml_tensor ** k_rot_of_inp   = nullptr;
    ggml_tensor ** v_rot_of_inp   = nullptr;
    ggml_tensor *  k_rot_upstream = nullptr;
    ggml_tensor *  v_rot_upstream = nullptr;
};
