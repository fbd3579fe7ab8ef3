#include "minicache-cuda-launch.cuh"
#include "minicache-cuda.cuh"
#include "minicache-math.h"

// The merge op. A block takes 32 pairs of vectors: its warps sum their products, then one thread for each pair finds how to
// blend them, then the warps blend them. Sums and blends are in double, as on the CPU: there are few sums, and 32 threads find
// blends at the same time.

static const int WARPS   = 4;
static const int VECTORS = WARP_SIZE;

struct merge_args {
    ggml_minicache_merge_params p;

    const char * kv_a;
    const char * kv_b;
    char *       out;
    int64_t      kv_token;  // strides in bytes
    int64_t      out_token;
    int64_t      n_vector;  // 2*n_head_kv for each token: K of all heads, then V
};

struct merge_vector {
    int64_t token;
    int     is_v;
    int     head;
    int     d;
    int     first;  // where the head begins in the token's row, in numbers

    __device__ merge_vector(const merge_args & a, int64_t i) {
        const int n = a.p.n_head_kv;
        token       = i / (2 * n);
        is_v        = (int) (i % (2 * n)) / n;
        head        = (int) (i % n);
        d           = is_v ? a.p.d_v : a.p.d_k;
        first       = is_v ? a.p.d_k * n + head * d : head * d;
    }

    __device__ const float * of(const merge_args & a, const char * kv) const {
        return (const float *) (kv + token * a.kv_token) + first;
    }

    __device__ float * out(const merge_args & a) const { return (float *) (a.out + token * a.out_token); }
};

static __device__ __forceinline__ double sum_of_warp(double x) {
    for (int lanes = WARP_SIZE / 2; lanes > 0; lanes /= 2) {
        x += __shfl_xor_sync(0xFFFFFFFF, x, lanes);
    }
    return x;
}

static __global__ void __launch_bounds__(WARPS * WARP_SIZE) merge_kernel(const merge_args a) {
    __shared__ double aa[VECTORS];
    __shared__ double bb[VECTORS];
    __shared__ double ab[VECTORS];  // sums; later aa and bb hold both weights

    const int64_t first = (int64_t) blockIdx.x * VECTORS;

    for (int i = threadIdx.y; i < VECTORS && first + i < a.n_vector; i += WARPS) {
        const merge_vector v(a, first + i);
        const float *      x = v.of(a, a.kv_a);
        const float *      y = v.of(a, a.kv_b);

        double xx = 0.0;
        double yy = 0.0;
        double xy = 0.0;
        for (int j = threadIdx.x; j < v.d; j += WARP_SIZE) {
            xx += (double) x[j] * x[j];
            yy += (double) y[j] * y[j];
            xy += (double) x[j] * y[j];
        }
        xx = sum_of_warp(xx);
        yy = sum_of_warp(yy);
        xy = sum_of_warp(xy);
        if (threadIdx.x == 0) {
            aa[i] = xx;
            bb[i] = yy;
            ab[i] = xy;
        }
    }
    __syncthreads();

    if (threadIdx.y == 0 && first + threadIdx.x < a.n_vector) {
        const merge_vector v(a, first + threadIdx.x);
        const int          n = a.p.n_head_kv;

        minicache_blend blend = minicache_blend_of(aa[threadIdx.x], bb[threadIdx.x], ab[threadIdx.x], a.p.t);
        if (a.p.average) {
            blend = minicache_average_of(blend);
        }
        aa[threadIdx.x] = blend.w_a;
        bb[threadIdx.x] = blend.w_b;

        float * mag = v.out(a) + (a.p.d_k + a.p.d_v) * n;

        mag[(2 * v.is_v + 0) * n + v.head] = blend.mag_a;
        mag[(2 * v.is_v + 1) * n + v.head] = blend.mag_b;
        mag[(4 + v.is_v) * n + v.head]     = blend.distance;
    }
    __syncthreads();

    for (int i = threadIdx.y; i < VECTORS && first + i < a.n_vector; i += WARPS) {
        const merge_vector v(a, first + i);
        const float *      x = v.of(a, a.kv_a);
        const float *      y = v.of(a, a.kv_b);
        float *            e = v.out(a) + v.first;
        for (int j = threadIdx.x; j < v.d; j += WARP_SIZE) {
            e[j] = (float) (aa[i] * x[j] + bb[i] * y[j]);
        }
    }
}

void minicache_cuda_merge_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * kv_a = dst->src[0];

    merge_args a;
    a.p         = minicache_cuda_params<ggml_minicache_merge_params>(dst);
    a.kv_a      = (const char *) kv_a->data;
    a.kv_b      = (const char *) dst->src[1]->data;
    a.out       = (char *) dst->data;
    a.kv_token  = kv_a->nb[1];
    a.out_token = dst->nb[1];
    a.n_vector  = 2 * a.p.n_head_kv * dst->ne[1];

    minicache_cuda_launch(
        merge_kernel, dim3((unsigned) ((a.n_vector + VECTORS - 1) / VECTORS)), dim3(WARP_SIZE, WARPS), 0, ctx.stream(), a);
}
