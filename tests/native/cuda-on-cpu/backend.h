#pragma once

// A ggml backend whose devices are like ggml-cuda's: memory that the host can't reach, and MiniCache's ops by the CUDA kernels.
// Everything else the CPU's backend computes on that memory. The devices are called cuda-on-cpu0 and cuda-on-cpu1.

#include "ggml-backend.h"

#include <cstddef>

ggml_backend_reg_t cuda_on_cpu_reg();

// In a library that ggml_backend_load() takes, with these to set up what is tested:
extern "C" {
GGML_BACKEND_API ggml_backend_reg_t ggml_backend_init(void);

// How many devices there are when the backend is loaded next, and the bytes that each has: 1 and 8 GiB at first.
GGML_BACKEND_API void cuda_on_cpu_set_devices(int n_devices, size_t memory);

// Of the MiniCache ops from now on the one with this number, 0 for the next, fails like a CUDA call in ggml-cuda does, and with
// `for_good` everything after it too. -1: none.
GGML_BACKEND_API void cuda_on_cpu_fail(int op, bool for_good);

// Of the copies to and from a device's memory, and of what sets it, the one with this number fails, 0 for the next. -1: none.
GGML_BACKEND_API void cuda_on_cpu_fail_copy(int copy);

// MiniCache ops that the devices have computed so far.
GGML_BACKEND_API int cuda_on_cpu_computed(void);
}
