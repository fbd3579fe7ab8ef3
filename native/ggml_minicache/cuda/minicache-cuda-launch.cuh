#pragma once

// How our kernels are launched and get their shared memory, so that tests/native can run the same text on the CPU.
//
// Without programmatic dependent launch: ours then need no word on what they wait for, whatever ran before them.

#include "common.cuh"

#ifdef __CUDACC__

#include <cuda_pipeline.h>

// a kernel's parameter that functions get a reference to: it stays where it is, where the architecture can
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
#define MINICACHE_PARAMETER __grid_constant__
#else
#define MINICACHE_PARAMETER
#endif

#define MINICACHE_SHARED(name) extern __shared__ __align__(16) char name[]

template <typename... Parameters, typename... Args>
static void minicache_cuda_launch(
    void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, cudaStream_t stream, const Args &... args) {
    if (shared > 48 * 1024) {
        CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared));
    }
    kernel<<<blocks, threads, shared, stream>>>(args...);
    CUDA_CHECK(cudaGetLastError());
}

#endif
