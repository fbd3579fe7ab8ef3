#pragma once

// The device that computes the ops under test.

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <string>

// for a backend of the CPU, which may be a library that was loaded at run time (GGML_BACKEND_DL)
void test_set_n_threads(ggml_backend_t backend, int n_threads);

class test_device {
  public:
    explicit test_device(const std::string & name);

    // holds the tensors; null if there is no such device
    ggml_backend_t get() const { return backend.get(); }

    bool is_cpu() const;
    bool supports(ggml_cgraph * graph) const;
    bool compute(ggml_cgraph * graph, int n_threads) const;

  private:
    ggml_backend_ptr backend;
};
