#pragma once

// How our kernels are launched and get their shared memory. It is separate so that tests/native can run the same kernels on the
// CPU.
//
// Kernels are launched without programmatic dependent launch, so they need not say what they wait for, whatever ran before them.

#include "common.cuh"

#ifdef __CUDACC__

#include <cuda_pipeline.h>

// A kernel's parameter that functions take by reference. On architectures that support it, it is not copied.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
#define MINICACHE_PARAMETER __grid_constant__
#else
#define MINICACHE_PARAMETER
#endif

#define MINICACHE_SHARED(name) extern __shared__ __align__(16) char name[]

// More than 48 KiB have to be asked for. None of the calls in this file is work of a stream, so they are allowed while a graph is
// captured.
template <typename... Parameters>
static void minicache_cuda_allow_shared(void (*kernel)(Parameters...), size_t shared) {
    if (shared > 48 * 1024) {
        CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared));
    }
}

// how many blocks a multiprocessor runs at a time
template <typename... Parameters>
static int minicache_cuda_resident_blocks(void (*kernel)(Parameters...), dim3 threads, size_t shared) {
    int n = 0;
    minicache_cuda_allow_shared(kernel, shared);
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, kernel, (int) (threads.x * threads.y * threads.z), shared));
    return n;
}

template <typename... Parameters, typename... Args>
static void minicache_cuda_launch(
    void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, cudaStream_t stream, const Args &... args) {
    minicache_cuda_allow_shared(kernel, shared);
    kernel<<<blocks, threads, shared, stream>>>(args...);
    CUDA_CHECK(cudaGetLastError());
}

#endif
