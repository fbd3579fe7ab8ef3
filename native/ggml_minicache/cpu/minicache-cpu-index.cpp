#include "minicache-cpu.h"

#include <algorithm>

// Parallel over the cells of each stream; each thread takes a whole number of blocks.
void minicache_cpu_index(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * cells = dst->src[0];
    const ggml_tensor * slots = dst->src[1];

    const int32_t block    = ggml_get_op_params_i32(dst, 1);
    const int32_t window   = ggml_get_op_params_i32(dst, 2);
    const int64_t n_kv     = dst->ne[0];
    const int64_t unit     = block > 0 ? block : 1;  // cells that one thread takes together
    const int64_t n_unit   = (n_kv + unit - 1) / unit;
    const int64_t n_thread = (n_unit + params->nth - 1) / params->nth;

    const int64_t unit_0 = std::min(n_unit, n_thread * params->ith);
    const int64_t unit_1 = std::min(n_unit, unit_0 + n_thread);
    const int64_t cell_0 = std::min(n_kv, unit_0 * unit);
    const int64_t cell_1 = std::min(n_kv, unit_1 * unit);

    for (int64_t s = 0; s < dst->ne[1]; ++s) {
        const auto * in   = (const int32_t *) ((const char *) cells->data + s * cells->nb[1]);
        const auto * slot = (const int32_t *) ((const char *) slots->data + s * slots->nb[2]);
        auto *       out  = (int32_t *) ((char *) dst->data + s * dst->nb[1]);

        std::copy(in + cell_0, in + cell_1, out + cell_0);
        if (dst->ne[2] == 2) {
            const auto * bases = (const int32_t *) ((const char *) in + cells->nb[2]);
            std::copy(bases + cell_0, bases + cell_1, (int32_t *) ((char *) out + dst->nb[2]) + cell_0);
        }

        const auto mark = [&](int64_t i, ggml_minicache_cell state) {
            const int64_t cell = (int64_t) slot[2 * i] - 1;
            if (cell >= cell_0 && cell < cell_1 && out[cell] == GGML_MINICACHE_CELL_MERGED) {
                out[cell] = state;
            }
        };
        for (int64_t i = 0; i < window; ++i) {
            mark(i, GGML_MINICACHE_CELL_WINDOW);
        }
        for (int64_t i = unit_0; block > 0 && i < unit_1; ++i) {
            mark(window + i, GGML_MINICACHE_CELL_RETAINED);
        }
    }
}
