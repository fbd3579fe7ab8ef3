#pragma once

// The graph of merged layers: the functions that llama-graph.cpp calls.

#include "llama-graph.h"

// Makes the attention input of a K/V cache. For a MiniCache one it includes what its merged layers need in addition.
std::unique_ptr<llm_graph_input_attn_kv> llama_minicache_attn_inp_kv(ggml_context * ctx0, const llama_hparams & hparams,
    const llama_cparams & cparams, const llama_ubatch & ubatch, const llama_kv_cache_context * mctx);

// Prepares the input for layer il, before its attention. llama.cpp rotates K and V whenever the input has a rotation; here
// only some layers have one, so it is set layer by layer.
void llama_minicache_begin_layer(llm_graph_input_attn_kv * inp, int il);

// Builds the attention of a layer of a MiniCache context, F32 [d_v*n_head, n_tokens], after llama.cpp's rotations if the layer
// has them. The deepest layer of a group also merges and stores; a plain layer in main memory stores and attends by our
// kernels. Returns null for any other layer, which llama.cpp builds itself. Throws std::runtime_error for a merged layer with a
// KQ bias.
//   q_cur F32 [d_k, n_head, n_tokens], k_cur F32 [d_k, n_head_kv, n_tokens], v_cur F32 [d_v, n_head_kv, n_tokens]
ggml_tensor * llama_minicache_build_attn(const llm_graph_context & graph, llm_graph_input_attn_kv * inp, ggml_tensor * q_cur,
    ggml_tensor * k_cur, ggml_tensor * v_cur, ggml_tensor * kq_b, ggml_tensor * sinks, float kq_scale, int il);
