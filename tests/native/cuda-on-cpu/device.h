#pragma once

// MiniCache's CUDA ops on the CPU, for tests.

#include "ggml.h"

// Computes the nodes of a graph, whose tensors are in host memory; false where one of them is no MiniCache op or not supported
// on CUDA devices.
bool cuda_on_cpu_compute(ggml_cgraph * graph);

bool cuda_on_cpu_supports(const ggml_tensor * op);
