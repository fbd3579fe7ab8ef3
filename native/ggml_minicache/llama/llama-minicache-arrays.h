#pragma once

// What the functions of the C API that compute on plain arrays have in common: checks of their arguments, and a graph of one node
// that the CPU backend computes.

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"
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

template <typename T>
static inline void minicache_set_data(ggml_tensor * tensor, const T * data) {
    ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
}

// Tensors are made in get(), then allocate() gives them memory, and compute() computes one of them.
class minicache_array_graph {
  public:
    minicache_array_graph();

    ggml_context * get() const { return ctx.get(); }

    // All tensors are zero at first.
    void allocate();

    // Computes `result` and copies it to `out`. All errors throw std::invalid_argument.
    void compute(ggml_tensor * result, int32_t n_threads, float * out);

  private:
    std::vector<uint8_t>    memory;  // of ctx: ggml_init() would end the process where it cannot allocate it
    ggml_context_ptr        ctx;
    ggml_backend_ptr        backend;
    ggml_backend_buffer_ptr buffer;
};
