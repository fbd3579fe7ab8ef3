#pragma once

// The graph of merged layers: what llama-graph.cpp calls.

#include "llama-graph.h"

// the attention input of a plain K/V cache; for a MiniCache one, with what its merged layers need besides
std::unique_ptr<llm_graph_input_attn_kv> llama_minicache_attn_inp_kv(ggml_context * ctx0, const llama_hparams & hparams,
    const llama_cparams & cparams, const llama_ubatch & ubatch, const llama_kv_cache_context * mctx);

// Before a layer's attention: upstream's rotations are applied where the inputs name them, and a layer has them or not.
void llama_minicache_begin_layer(llm_graph_input_attn_kv * inp, int il);

// Attention of a layer of a MiniCache context, F32 [d_v*n_head, n_tokens], in the basis of upstream's rotations if it has them.
// The deepest layer of a group also merges and stores, a plain one in main memory stores and attends by our kernels. Null
// for any other layer: that is upstream's.
//   q_cur F32 [d_k, n_head, n_tokens], k_cur F32 [d_k, n_head_kv, n_tokens], v_cur F32 [d_v, n_head_kv, n_tokens]
ggml_tensor * llama_minicache_build_attn(const llm_graph_context & graph, llm_graph_input_attn_kv * inp, ggml_tensor * q_cur,
    ggml_tensor * k_cur, ggml_tensor * v_cur, ggml_tensor * kq_b, ggml_tensor * sinks, float kq_scale, int il);
