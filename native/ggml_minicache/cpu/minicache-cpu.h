#pragma once

// GGML_OP_MINICACHE on the CPU: what ggml-cpu calls, and the ops it runs.

#include "ggml-cpu-impl.h"
#include "ggml-minicache.h"

#ifdef __cplusplus
extern "C" {
#endif

// called by every thread of the graph's pool
void ggml_compute_forward_minicache(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// bytes of work buffer that `op` needs with n_threads threads
size_t ggml_minicache_work_size(const struct ggml_tensor * op, int n_threads);

#ifdef __cplusplus
}

#include <cstring>

// the parameter struct that follows the kind of op
template <typename T>
static T minicache_params(const ggml_tensor * op) {
    T params;
    memcpy(&params, op->op_params + 1, sizeof(params));
    return params;
}

void minicache_cpu_index(const ggml_compute_params * params, ggml_tensor * dst);
void minicache_cpu_merge(const ggml_compute_params * params, ggml_tensor * dst);
void minicache_cpu_retain(const ggml_compute_params * params, ggml_tensor * dst);
void minicache_cpu_attn(const ggml_compute_params * params, ggml_tensor * dst);
void minicache_cpu_attn_ref(const ggml_compute_params * params, ggml_tensor * dst);

void minicache_cpu_encode(const ggml_compute_params * params, ggml_tensor * dst);
void minicache_cpu_encode_ref(const ggml_compute_params * params, ggml_tensor * dst);

size_t minicache_cpu_attn_work_size(const ggml_tensor * op, int n_threads);
size_t minicache_cpu_attn_ref_work_size(const ggml_tensor * op, int n_threads);
size_t minicache_cpu_encode_work_size(const ggml_tensor * op, int n_threads);
size_t minicache_cpu_encode_ref_work_size(const ggml_tensor * op, int n_threads);

#endif
