#pragma once

// What our kernels use of CUDA and of ggml-cuda's common.cuh, implemented on the CPU.

#include "block-of-fibers.h"
#include "device-memory.h"
#include "ggml-impl.h"
#include "ggml.h"

#define GGML_COMMON_DECL_CPP
#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define MINICACHE_PARAMETER
#define __launch_bounds__(n)
#define __shared__ static  // blocks run one after the other

#define WARP_SIZE 32

using std::max;
using std::min;

//
// types
//

struct half {
    ggml_fp16_t bits;
};

struct half2 {
    half x, y;
};

struct nv_bfloat16 {
    ggml_bf16_t bits;
};

struct float2 {
    float x, y;
};

struct int4 {
    int x, y, z, w;
};

static inline half __float2half(float x) { return { ggml_fp32_to_fp16(x) }; }

static inline float __half2float(half x) { return ggml_fp16_to_fp32(x.bits); }

static inline float __half2float(ggml_fp16_t x) { return ggml_fp16_to_fp32(x); }

static inline nv_bfloat16 __float2bfloat16(float x) { return { ggml_fp32_to_bf16(x) }; }

static inline half2 __floats2half2_rn(float x, float y) { return { __float2half(x), __float2half(y) }; }

static inline float2 __half22float2(half2 x) { return { __half2float(x.x), __half2float(x.y) }; }

static inline half2 __hsub2(half2 x, half2 y) {
    return __floats2half2_rn(__half2float(x.x) - __half2float(y.x), __half2float(x.y) - __half2float(y.y));
}

static inline half __low2half(half2 x) { return x.x; }

static inline half __high2half(half2 x) { return x.y; }

static inline float __int_as_float(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline int32_t __float_as_int(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline int __popc(uint32_t x) { return __builtin_popcount(x); }

static inline int __ffs(uint32_t x) { return __builtin_ffs((int) x); }

//
// what threads do together
//

static inline void __syncthreads() { wait_for_block(); }

static inline int __syncthreads_or(int x) { return any_of_block(x != 0); }

static inline void __syncwarp() { exchange("__syncwarp", "", 0); }

static inline uint32_t __ballot_sync(uint32_t, bool x) {
    const uint8_t * values = exchange("__ballot_sync", &x, sizeof(x));
    uint32_t        bits   = 0;
    for (int lane = 0; lane < WARP_SIZE; ++lane) {
        bits |= lane_takes_part(lane) && lane_value<bool>(values, lane) ? 1u << lane : 0;
    }
    return bits;
}

template <typename T>
static T __shfl_xor_sync(uint32_t, T x, int lanes) {
    const uint8_t * values = exchange("__shfl_xor_sync", &x, sizeof(x));
    return lane_value<T>(values, lane_of_thread() ^ lanes);
}

static inline void __pipeline_memcpy_async(void * to, const void * from, size_t size) { copy_later(to, from, size); }

static inline void __pipeline_commit() {}

// `left` is always 0 here: wait for all copies
static inline void __pipeline_wait_prior(int left) {
    GGML_ASSERT(left == 0);
    wait_for_copies();
}

template <typename T, typename F>
static T reduce_warp(const char * place, T x, F f) {
    const uint8_t * values = exchange(place, &x, sizeof(x));
    T               result = lane_value<T>(values, 0);
    for (int lane = 1; lane < WARP_SIZE; ++lane) {
        result = f(result, lane_value<T>(values, lane));
    }
    return result;
}

static inline float warp_reduce_sum(float x) {
    return reduce_warp("warp_reduce_sum", x, [](float a, float b) { return a + b; });
}

static inline float warp_reduce_max(float x) {
    return reduce_warp("warp_reduce_max", x, [](float a, float b) { return fmaxf(a, b); });
}

//
// the host's side
//

typedef int cudaStream_t;

// Only kernels can read and write the device's memory. So launches cannot depend on its content, and are the same whenever a
// captured graph is launched again.
inline int current_device = 0;

static inline void ggml_cuda_set_device(int device) { current_device = device; }

#define MINICACHE_SHARED(name) char * const name = shared_memory()

template <typename... Parameters>
static int minicache_cuda_resident_blocks(void (*)(Parameters...), dim3, size_t) {
    return 4;
}

template <typename... Parameters, typename... Args>
static void minicache_cuda_launch(
    void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, cudaStream_t, const Args &... args) {
    const device_access access(current_device);
    run_blocks(blocks, threads, shared, [&] { kernel(args...); });
}

struct ggml_cuda_pool {};

struct ggml_backend_cuda_context {
    int            device = 0;
    ggml_cuda_pool the_pool;

    ggml_cuda_pool & pool() { return the_pool; }

    cudaStream_t stream() const { return 0; }
};

// Each allocation is separate, so that sanitizers see where it ends, and filled with NaN.
template <typename T>
struct ggml_cuda_pool_alloc {
    explicit ggml_cuda_pool_alloc(ggml_cuda_pool &) {}

    ggml_cuda_pool_alloc(ggml_cuda_pool &, size_t n) { alloc(n); }

    ~ggml_cuda_pool_alloc() { free(ptr); }

    ggml_cuda_pool_alloc(const ggml_cuda_pool_alloc &)             = delete;
    ggml_cuda_pool_alloc & operator=(const ggml_cuda_pool_alloc &) = delete;

    T * alloc(size_t n) {
        ptr = (T *) aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64);
        memset((void *) ptr, 0xFF, (n * sizeof(T) + 63) / 64 * 64);
        return ptr;
    }

    T * get() const { return ptr; }

  private:
    T * ptr = nullptr;
};

struct ggml_cuda_device {
    int    cc;
    int    nsm;
    size_t smpbo;
};

struct ggml_cuda_devices {
    ggml_cuda_device devices[N_DEVICES];
};

// few multiprocessors, so that there are chunks of more than one tile too
static inline ggml_cuda_devices ggml_cuda_info() {
    const ggml_cuda_device device = { 800, 2, 99 * 1024 };
    return { { device, device } };
}

static inline bool ampere_mma_available(int cc) { return cc >= 800; }

static inline float get_alibi_slope(float max_bias, uint32_t h, uint32_t n_head_log2, float m0, float m1) {
    if (max_bias <= 0.0f) {
        return 1.0f;
    }
    return h < n_head_log2 ? powf(m0, (float) (h + 1)) : powf(m1, (float) (2 * (h - n_head_log2) + 1));
}
