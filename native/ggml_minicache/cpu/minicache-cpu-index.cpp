#include "minicache-cpu.h"

#include <algorithm>

// parallel over the cells of each stream, a whole number of blocks to a thread
void minicache_cpu_index(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * cells = dst->src[0];
    const ggml_tensor * slots = dst->src[1];

    const int32_t block    = ggml_get_op_params_i32(dst, 1);
    const int64_t n_kv     = dst->ne[0];
    const int64_t n_slot   = ggml_minicache_n_slot(n_kv, block);
    const int64_t n_thread = (n_slot + params->nth - 1) / params->nth;

    const int64_t slot_0 = std::min(n_slot, n_thread * params->ith);
    const int64_t slot_1 = std::min(n_slot, slot_0 + n_thread);
    const int64_t cell_0 = std::min(n_kv, slot_0 * block);
    const int64_t cell_1 = std::min(n_kv, slot_1 * block);

    for (int64_t s = 0; s < dst->ne[1]; ++s) {
        const auto * in   = (const int32_t *) ((const char *) cells->data + s * cells->nb[1]);
        const auto * slot = (const int32_t *) ((const char *) slots->data + s * slots->nb[2]);
        auto *       out  = (int32_t *) ((char *) dst->data + s * dst->nb[1]);

        std::copy(in + cell_0, in + cell_1, out + cell_0);
        if (dst->ne[2] == 2) {
            const auto * bases = (const int32_t *) ((const char *) in + cells->nb[2]);
            std::copy(bases + cell_0, bases + cell_1, (int32_t *) ((char *) out + dst->nb[2]) + cell_0);
        }

        for (int64_t i = slot_0; i < slot_1; ++i) {
            const int64_t cell = (int64_t) slot[2 * i] - 1;
            if (cell >= cell_0 && cell < cell_1 && out[cell] == GGML_MINICACHE_CELL_MERGED) {
                out[cell] = GGML_MINICACHE_CELL_RETAINED;
            }
        }
    }
}
