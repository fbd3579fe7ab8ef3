#pragma once

// GGML_OP_MINICACHE on CUDA devices: what ggml-cuda calls, and the ops it runs.

#include "common.cuh"
#include "ggml-minicache.h"

#include <cstring>

#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)

// HIP and MUSA build ggml-cuda's files too, but the kernels are for NVIDIA's tensor cores
static inline void ggml_cuda_minicache(ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("not supported"); }

static inline bool ggml_cuda_minicache_supported(int, const ggml_tensor *) { return false; }

#else

void ggml_cuda_minicache(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// Also false if the op's part of the cache is not on this device: the op reads and writes it in place.
bool ggml_cuda_minicache_supported(int device, const ggml_tensor * op);

// the parameter struct that follows the kind of op
template <typename T>
static T minicache_cuda_params(const ggml_tensor * op) {
    T params;
    memcpy(&params, op->op_params + 1, sizeof(params));
    return params;
}

void minicache_cuda_index_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
void minicache_cuda_merge_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
void minicache_cuda_retain_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
void minicache_cuda_encode_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
void minicache_cuda_attn_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

bool minicache_cuda_retain_supported(const ggml_tensor * op);
bool minicache_cuda_encode_supported(const ggml_tensor * op);
bool minicache_cuda_attn_supported(const ggml_tensor * op);

// whether our kernels read and write rows of this type
static inline bool minicache_cuda_has_rows_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_IQ4_NL:
            return true;
        default:
            return false;
    }
}

#endif
