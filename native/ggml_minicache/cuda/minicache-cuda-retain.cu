#include "cpy-utils.cuh"
#include "minicache-cuda-launch.cuh"
#include "minicache-cuda.cuh"
#include "minicache-window.h"

// The retain op. The CPU offers the tokens to their slots one after the other. Here each token finds out for itself whether its
// slot ends up with it: in a block's slot the most distant token stays, the first one of equally distant ones, if it is more
// distant than the one that the slot holds; in the window the last token stays. So the outcome is the same. There are three
// kernels, because the first two need the slots in their old state.

static const int THREADS = 128;

struct retain_args {
    ggml_minicache_retain_params p;

    int32_t *       slots;
    const char *    merged;
    const int64_t * rows;
    const int32_t * cells;
    const float *   kv[MINICACHE_CODE_LAYERS];
    char *          pool[2];  // K, V
    int64_t         pool_slot[2];
    int64_t         pool_stream[2];
    int64_t         pool_layer[2];
    int32_t         pool_type[2];

    int64_t slots_stream;  // in numbers
    int64_t merged_token;  // in bytes
    int64_t cells_stream;  // in numbers
    int32_t distance;      // where the distances begin in a row of `merged`, in numbers
    int32_t n_kv;
    int32_t n_tokens;
    int32_t n_slot;
    int32_t n_stream;  // streams of `cells`
    int32_t n_embd_k;
    int32_t n_embd_v;

    // of each token
    float *   distance_k;
    float *   distance_v;
    int32_t * streams;
    int32_t * cell_of;
    int32_t * wins;  // bit 0: the token gets its slot of the window, bit 1: that of its block

    __device__ int stream(int i) const { return streams[i]; }

    __device__ int cell(int i) const { return cell_of[i]; }

    __device__ int window_slot(int i) const { return minicache_window_slot(cell(i), p.window); }

    __device__ int block_slot(int i) const { return p.window + cell(i) / p.block; }

    __device__ int32_t * slot(int s, int i) const { return slots + s * slots_stream + 2 * i; }

    // added and halved in the CPU's order, so that ties are the same
    __device__ float mean(int i) const { return 0.5f * (distance_k[i] + distance_v[i]); }

    __device__ bool holds_past(int s, int at) const {
        return at >= 0 && at < n_kv && cells[(s - p.stream_0) * cells_stream + at] == GGML_MINICACHE_CELL_MERGED;
    }
};

static __global__ void __launch_bounds__(THREADS) distance_kernel(const retain_args a) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.n_tokens) {
        return;
    }
    const float * x = (const float *) (a.merged + i * a.merged_token) + a.distance;
    const int     n = a.p.n_head_kv;

    float sum_k = 0.0f;
    float sum_v = 0.0f;
    for (int h = 0; h < n; ++h) {
        sum_k += x[h];
        sum_v += x[n + h];
    }
    a.distance_k[i] = sum_k / (float) n;
    a.distance_v[i] = sum_v / (float) n;
    // kept for all threads that look at this token, as divisions of 64 bits are slow
    a.streams[i] = (int32_t) (a.rows[i] / a.p.n_cells);
    a.cell_of[i] = (int32_t) (a.rows[i] % a.p.n_cells);
}

static __global__ void __launch_bounds__(THREADS) decide_kernel(const retain_args a) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.n_tokens) {
        return;
    }
    const int   s = a.stream(i);
    const float d = a.mean(i);

    const int at_window = a.p.window > 0 ? a.window_slot(i) : 0;
    const int at_block  = a.p.block > 0 ? a.block_slot(i) : 0;

    // the first cell of the block
    const int first = a.p.block > 0 ? a.cell(i) / a.p.block * a.p.block : 0;

    bool window = a.p.window > 0;
    bool block  = a.p.block > 0;

    if (block) {
        const int32_t * slot = a.slot(s, at_block);
        if (slot[0] != 0 && a.holds_past(s, slot[0] - 1)) {
            block = d > __int_as_float(slot[1]);
        }
    }
    for (int j = 0; j < a.n_tokens && (window || block); ++j) {
        if (j == i || a.stream(j) != s) {
            continue;
        }
        const int cell = a.cell(j);
        if (window && j > i && minicache_window_slot(cell, a.p.window) == at_window) {
            window = false;
        }
        if (block && cell >= first && cell - first < a.p.block) {
            const float other = a.mean(j);
            block             = j < i ? other < d : !(other > d);
        }
    }
    a.wins[i] = (window ? 1 : 0) | (block ? 2 : 0);
}

static __device__ void update_stats(const retain_args & a, int s) {
    int32_t * means = a.slot(s, a.n_slot);
    int32_t * count = a.slot(s, a.n_slot + 1);

    float   mean_k = __int_as_float(means[0]);
    float   mean_v = __int_as_float(means[1]);
    int32_t n      = *count;
    for (int i = 0; i < a.n_tokens; ++i) {
        if (a.stream(i) != s) {
            continue;
        }
        // the count saturates: from there on the means move with a fixed weight
        n += n < INT32_MAX ? 1 : 0;
        mean_k += (a.distance_k[i] - mean_k) / (float) n;
        mean_v += (a.distance_v[i] - mean_v) / (float) n;
    }
    means[0] = __float_as_int(mean_k);
    means[1] = __float_as_int(mean_v);
    *count   = n;
}

template <typename block_t, int N>
static __device__ void write_blocks(const float * x, char * row, int n, void (*quantize)(const float *, block_t *)) {
    for (int i = threadIdx.x; i < n / N; i += THREADS) {
        quantize(x + i * N, (block_t *) row + i);
    }
}

// The whole block of threads: writes n numbers to a row of a pool.
static __device__ void write_row(const float * x, char * row, int32_t type, int n) {
    switch (type) {
        case GGML_TYPE_F16:
            for (int i = threadIdx.x; i < n; i += THREADS) {
                ((half *) row)[i] = __float2half(x[i]);
            }
            break;
        case GGML_TYPE_BF16:
            for (int i = threadIdx.x; i < n; i += THREADS) {
                ((nv_bfloat16 *) row)[i] = __float2bfloat16(x[i]);
            }
            break;
        case GGML_TYPE_Q8_0:
            write_blocks<block_q8_0, QK8_0>(x, row, n, quantize_f32_q8_0_block);
            break;
        case GGML_TYPE_Q5_1:
            write_blocks<block_q5_1, QK5_1>(x, row, n, quantize_f32_q5_1_block);
            break;
        case GGML_TYPE_Q5_0:
            write_blocks<block_q5_0, QK5_0>(x, row, n, quantize_f32_q5_0_block);
            break;
        case GGML_TYPE_Q4_1:
            write_blocks<block_q4_1, QK4_1>(x, row, n, quantize_f32_q4_1_block);
            break;
        case GGML_TYPE_Q4_0:
            write_blocks<block_q4_0, QK4_0>(x, row, n, quantize_f32_q4_0_block);
            break;
        case GGML_TYPE_IQ4_NL:
            write_blocks<block_iq4_nl, QK4_NL>(x, row, n, quantize_f32_iq4_nl_block);
            break;
    }
}

// One block of threads for each token, then one for the statistics of each stream.
static __global__ void __launch_bounds__(THREADS) keep_kernel(const retain_args a) {
    const int i = blockIdx.x;
    if (i >= a.n_tokens) {
        if (threadIdx.x == 0) {
            update_stats(a, a.p.stream_0 + i - a.n_tokens);
        }
        return;
    }
    const int s = a.stream(i);

    for (int bit = 0; bit < 2; ++bit) {
        if (!(a.wins[i] >> bit & 1)) {
            continue;
        }
        const int at = bit == 0 ? a.window_slot(i) : a.block_slot(i);
        if (threadIdx.x == 0) {
            a.slot(s, at)[0] = a.cell(i) + 1;
            a.slot(s, at)[1] = __float_as_int(a.mean(i));
        }
        for (int side = 0; side < a.p.n_layer; ++side) {
            const float * x = a.kv[side] + (int64_t) i * (a.n_embd_k + a.n_embd_v);
            for (int is_v = 0; is_v < 2; ++is_v) {
                char * row = a.pool[is_v] + side * a.pool_layer[is_v] + s * a.pool_stream[is_v] + at * a.pool_slot[is_v];
                write_row(is_v ? x + a.n_embd_k : x, row, a.pool_type[is_v], is_v ? a.n_embd_v : a.n_embd_k);
            }
        }
    }
}

void minicache_cuda_retain_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * slots  = dst->src[0];
    const ggml_tensor * merged = dst->src[1];
    const ggml_tensor * cells  = dst->src[3];

    retain_args a = {};
    a.p           = minicache_cuda_params<ggml_minicache_retain_params>(dst);
    a.slots       = (int32_t *) slots->data;
    a.merged      = (const char *) merged->data;
    a.rows        = (const int64_t *) dst->src[2]->data;
    a.cells       = (const int32_t *) cells->data;
    for (int side = 0; side < a.p.n_layer; ++side) {
        a.kv[side] = (const float *) dst->src[6 + side]->data;
    }
    for (int is_v = 0; is_v < 2; ++is_v) {
        const ggml_tensor * pool = dst->src[4 + is_v];
        a.pool[is_v]             = pool ? (char *) pool->data : nullptr;
        a.pool_slot[is_v]        = pool ? pool->nb[1] : 0;
        a.pool_stream[is_v]      = pool ? pool->nb[2] : 0;
        a.pool_layer[is_v]       = pool ? pool->nb[3] : 0;
        a.pool_type[is_v]        = pool ? pool->type : GGML_TYPE_COUNT;
    }
    a.slots_stream = slots->nb[2] / sizeof(int32_t);
    a.merged_token = merged->nb[1];
    a.cells_stream = cells->nb[1] / sizeof(int32_t);
    a.distance     = (int32_t) merged->ne[0] - 2 * a.p.n_head_kv;
    a.n_kv         = (int32_t) cells->ne[0];
    a.n_tokens     = (int32_t) dst->src[6]->ne[1];
    a.n_slot       = (int32_t) (a.p.window + ggml_minicache_n_slot(a.p.n_cells, a.p.block));
    a.n_stream     = (int32_t) cells->ne[1];
    a.n_embd_k     = a.p.d_k * a.p.n_head_kv;
    a.n_embd_v     = a.p.d_v * a.p.n_head_kv;

    ggml_cuda_pool_alloc<float>   distances(ctx.pool(), 2 * a.n_tokens);
    ggml_cuda_pool_alloc<int32_t> whole(ctx.pool(), 3 * a.n_tokens);
    a.distance_k = distances.get();
    a.distance_v = distances.get() + a.n_tokens;
    a.streams    = whole.get();
    a.cell_of    = whole.get() + a.n_tokens;
    a.wins       = whole.get() + 2 * a.n_tokens;

    const dim3 blocks((a.n_tokens + THREADS - 1) / THREADS);
    minicache_cuda_launch(distance_kernel, blocks, dim3(THREADS), 0, ctx.stream(), a);
    minicache_cuda_launch(decide_kernel, blocks, dim3(THREADS), 0, ctx.stream(), a);
    minicache_cuda_launch(keep_kernel, dim3(a.n_tokens + a.n_stream), dim3(THREADS), 0, ctx.stream(), a);
}

static bool writes(const ggml_tensor * pool) { return !pool || minicache_cuda_has_rows_of(pool->type); }

bool minicache_cuda_retain_supported(const ggml_tensor * op) { return writes(op->src[4]) && writes(op->src[5]); }
