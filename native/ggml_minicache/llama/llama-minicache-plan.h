#pragma once

// A plan: a small GGUF file that says for one model which layers share storage, in groups, and how each group is kept.
// `minicache calibrate` writes it; docs/plan.md has its keys.

#include "ggml.h"
#include "llama-minicache.h"
#include "minicache-code-heads.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct llama_model;

typedef std::vector<int32_t> minicache_layers;  // layers in order, such as those of a group: the deepest is the last

struct minicache_plan_group {
    minicache_layers layers;

    minicache_code_shape    shape;  // n_rot and rope are the model's, set when a cache is made; without codes only the sizes
    minicache_group_layouts layouts;
    std::vector<uint8_t>    codec;  // as minicache_codec_offsets says, without frequencies, which are the model's

    // of a group of two, layers a and b, [n_head_kv][d][d]: a layer's vectors are multiplied by their head's matrix before they are
    // merged; empty if they are merged unchanged
    std::vector<float> basis_k[2];
    std::vector<float> basis_v[2];
};

// what a layer's K and V are kept as
struct minicache_layer_types {
    ggml_type k;
    ggml_type v;
};

struct minicache_plan {
    std::string path;
    std::string fingerprint;  // of the model it was made for

    std::vector<uint8_t> header;  // of the file, all but the tensors' data

    llama_minicache_mode mode;  // ALIGNED or CODE
    float                t;     // of SLERP

    int32_t   n_layer;
    int32_t   rope_block;  // K is coded relative to the last multiple of it, 0: as it is
    ggml_type type_k;      // of layers that are in no group, and of directions
    ggml_type type_v;
    ggml_type pool_type;
    float     retain;
    int32_t   window;

    std::vector<minicache_plan_group> groups;

    std::map<int32_t, minicache_layer_types> plain;  // of layers that are in no group and have types of their own

    // of a layer that is in no group
    minicache_layer_types types_of(int32_t il) const {
        const auto it = plain.find(il);
        return it == plain.end() ? minicache_layer_types{ type_k, type_v } : it->second;
    }

    uint64_t hash;  // of everything that a group's rows depend on
};

// what the C API hands out
struct llama_minicache_plan {
    std::shared_ptr<const minicache_plan> plan;
};

// Reads a plan file; everything that a plan must hold is checked here and nowhere else. Throws std::invalid_argument, saying what is
// wrong with the file.
std::shared_ptr<const minicache_plan> minicache_read_plan(const std::string & path);

// The kernels use a codec's numbers unchecked: all must be finite, and the steps of magnitudes above 0. Returns "" if so, else
// the flaw. `codec` has the size that `shape` says.
std::string minicache_codec_flaw(const minicache_code_shape & shape, const void * codec);

// 16 hexadecimal digits, equal for equal models: of the sizes, and of the weights of the layers' norms.
// python/minicache_cpp/modelfile/fingerprint.py computes the same from the file.
std::string minicache_fingerprint(const llama_model & model);

// Why the plan does not belong to the model, "" if it does. A model without weights is compared by its shape alone.
std::string minicache_why_not_plan(const minicache_plan & plan, const llama_model & model);

// Throws std::invalid_argument where the plan is of another model.
void minicache_check_plan(const minicache_plan & plan, const llama_model & model);
