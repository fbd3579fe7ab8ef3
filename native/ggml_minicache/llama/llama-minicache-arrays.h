#pragma once

// What the functions of the C API that compute on plain arrays have in common: checks of their arguments.

#include "ggml.h"
#include "llama-minicache-array-graph.h"
#include "llama-minicache.h"
#include "minicache-code-heads.h"

#include <cstdint>
#include <string>
#include <vector>

// Throws std::invalid_argument with this message if `ok` is false.
void minicache_check_arg(bool ok, const std::string & message);

// The type of rows of head_size numbers. Throws std::invalid_argument if no rows can be stored in it; `name` is the argument's.
ggml_type minicache_check_type(ggml_type type, int64_t head_size, const char * name);

// A codec as the ops take it.
struct minicache_array_codec {
    minicache_code_shape               shape;
    std::vector<minicache_head_layout> heads;  // [2][n_head_kv], of K, then of V
    std::vector<uint8_t>               data;   // begins with them
};

// The codec, after all of it has been checked. Throws std::invalid_argument.
minicache_array_codec minicache_checked_codec(const llama_minicache_codec * codec);

// Throws std::invalid_argument if a group of this shape has no layer number `side`.
void minicache_check_side(int32_t side, const minicache_code_shape & shape);

// Each token's K and V side by side: [n_tokens][n_embd_k + n_embd_v].
std::vector<float> minicache_joined(const float * k, const float * v, int64_t n_embd_k, int64_t n_embd_v, int64_t n_tokens);
