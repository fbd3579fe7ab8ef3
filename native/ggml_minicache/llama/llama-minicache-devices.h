#pragma once

// What a device's backend can compute of the ops that a cache would give it.

#include "ggml-backend.h"
#include "ggml.h"
#include "llama-minicache-plan.h"

#include <string>

struct llama_hparams;
struct minicache_group;

// how a cache keeps its groups
struct minicache_storage {
    bool      coded;   // as codes, not as directions
    ggml_type type_k;  // of directions
    ggml_type type_v;
    ggml_type pool_type;  // GGML_TYPE_COUNT: type_k and type_v
    int32_t   block;      // cells per retained slot, 0 without a pool
    int32_t   window;     // latest tokens that are kept unmerged
};

// Returns the names of those ops that the device's backend lacks for the group, separated by commas, "" if it has them all.
// The CPU has them all.
std::string minicache_missing_ops(
    ggml_backend_dev_t dev, const llama_hparams & hparams, const minicache_group & group, const minicache_storage & storage);

// which op attends to a layer that is not merged
enum minicache_plain_op {
    MINICACHE_PLAIN_UPSTREAM,  // llama.cpp's flash attention
    MINICACHE_PLAIN_OWN,       // ggml_minicache_attn()
    MINICACHE_PLAIN_NONE,      // the device has neither
};

// Chooses the op for layer il on a device other than the CPU: llama.cpp's where it reads the layer's types without a copy, else
// ours.
minicache_plain_op minicache_plain_op_on(
    ggml_backend_dev_t dev, const llama_hparams & hparams, int32_t il, const minicache_layer_types & types);
