#include "minicache-cuda-launch.cuh"
#include "minicache-cuda.cuh"
#include "minicache-window.h"

// The index op, which says what each cell holds: one thread for each cell looks at the two slots that may hold it.

static const int THREADS = 256;

struct index_args {
    const int32_t * cells;
    const int32_t * slots;
    int32_t *       out;

    // strides, in numbers
    int64_t cells_stream;
    int64_t cells_bases;
    int64_t slots_stream;
    int64_t out_stream;
    int64_t out_bases;

    int32_t n_kv;
    int32_t block;
    int32_t window;
    int32_t with_bases;
};

static __global__ void __launch_bounds__(THREADS) index_kernel(const index_args a) {
    const int cell   = blockIdx.x * THREADS + threadIdx.x;
    const int stream = blockIdx.y;
    if (cell >= a.n_kv) {
        return;
    }
    const int32_t * cells = a.cells + stream * a.cells_stream;
    const int32_t * slots = a.slots + stream * a.slots_stream;
    int32_t *       out   = a.out + stream * a.out_stream;

    const auto holds = [&](int slot) { return slots[2 * slot] == cell + 1; };

    int32_t state = cells[cell];
    if (state == GGML_MINICACHE_CELL_MERGED) {
        if (a.window > 0 && holds(minicache_window_slot(cell, a.window))) {
            state = GGML_MINICACHE_CELL_WINDOW;
        } else if (a.block > 0 && holds(a.window + cell / a.block)) {
            state = GGML_MINICACHE_CELL_RETAINED;
        }
    }
    out[cell] = state;
    if (a.with_bases) {
        out[a.out_bases + cell] = cells[a.cells_bases + cell];
    }
}

void minicache_cuda_index_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * cells = dst->src[0];
    const ggml_tensor * slots = dst->src[1];

    const int64_t n = sizeof(int32_t);

    const index_args a = {
        (const int32_t *) cells->data,
        (const int32_t *) slots->data,
        (int32_t *) dst->data,
        (int64_t) cells->nb[1] / n,
        (int64_t) cells->nb[2] / n,
        (int64_t) slots->nb[2] / n,
        (int64_t) dst->nb[1] / n,
        (int64_t) dst->nb[2] / n,
        (int32_t) dst->ne[0],
        ggml_get_op_params_i32(dst, 1),
        ggml_get_op_params_i32(dst, 2),
        dst->ne[2] == 2,
    };
    minicache_cuda_launch(
        index_kernel, dim3((a.n_kv + THREADS - 1) / THREADS, (unsigned) dst->ne[1]), dim3(THREADS), 0, ctx.stream(), a);
}
