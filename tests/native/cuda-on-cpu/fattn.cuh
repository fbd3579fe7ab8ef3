#pragma once

// ggml-cuda's flash attention, computed by the CPU's.

#include "common.cuh"

bool ggml_cuda_flash_attn_ext_supported(int device, const ggml_tensor * op);

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & ctx, ggml_tensor * op);
