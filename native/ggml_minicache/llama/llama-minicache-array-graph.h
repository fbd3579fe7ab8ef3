#pragma once

// A graph of one node that the CPU backend computes, with tensors of its own.

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <vector>

template <typename T>
static inline void minicache_set_data(ggml_tensor * tensor, const T * data) {
    ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
}

// Tensors are made in get(), then allocate() gives them memory, and compute() computes one of them. All of these throw
// std::runtime_error where memory runs out or the computation fails.
class minicache_array_graph {
  public:
    minicache_array_graph();

    ggml_context * get() const { return ctx.get(); }

    // All tensors are zero at first.
    void allocate();

    // Computes `result` and copies it to `out`.
    void compute(ggml_tensor * result, int32_t n_threads, float * out);

  private:
    std::vector<uint8_t>    memory;  // of ctx: ggml_init() would end the process where it cannot allocate it
    ggml_context_ptr        ctx;
    ggml_backend_ptr        backend;
    ggml_backend_buffer_ptr buffer;
};
