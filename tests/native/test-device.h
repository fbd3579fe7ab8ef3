#pragma once

// Where the ops under test are computed.

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <string>

extern const char * const CUDA_ON_CPU;  // CUDA kernels, run on the CPU: see cuda-on-cpu/

class test_device {
  public:
    explicit test_device(const std::string & name);

    // holds the tensors; null where there is no such device
    ggml_backend_t get() const { return backend.get(); }

    // the CPU's own kernels
    bool is_cpu() const { return cpu && !emulates; }

    bool supports(ggml_cgraph * graph) const;
    bool compute(ggml_cgraph * graph, int n_threads) const;

  private:
    ggml_backend_ptr backend;
    bool             cpu      = false;
    bool             emulates = false;
};
