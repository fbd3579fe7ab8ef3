#pragma once

// A ggml backend whose devices are like ggml-cuda's: the host cannot access their memory, and the CUDA kernels compute
// MiniCache's ops. The CPU backend computes all other ops on that memory. The devices are called cuda-on-cpu0 and cuda-on-cpu1.

#include "ggml-backend.h"

#include <cstddef>

ggml_backend_reg_t cuda_on_cpu_reg();

// In a library for ggml_backend_load(), these functions set up what is tested:
extern "C" {
GGML_BACKEND_API ggml_backend_reg_t ggml_backend_init(void);

// The number of devices when the backend is next loaded, and the bytes of memory that each has. Defaults: 1 and 8 GiB.
GGML_BACKEND_API void cuda_on_cpu_set_devices(int n_devices, size_t memory);

// Makes one of the MiniCache ops from now on, 0 for the next one, fail as a CUDA call in ggml-cuda does, and with `for_good` also
// everything after it. -1: none fails.
GGML_BACKEND_API void cuda_on_cpu_fail(int op, bool for_good);

// Makes one of the calls that copy to or from a device's memory, or set it, fail, 0 for the next one. -1: none fails.
GGML_BACKEND_API void cuda_on_cpu_fail_copy(int copy);

// The number of MiniCache ops that the devices have computed so far.
GGML_BACKEND_API int cuda_on_cpu_computed(void);
}
