#include "minicache-cpu.h"

void ggml_compute_forward_minicache(const ggml_compute_params * params, ggml_tensor * dst) {
    switch (ggml_minicache_get_op(dst)) {
        case GGML_MINICACHE_OP_INDEX:
            minicache_cpu_index(params, dst);
            break;
        case GGML_MINICACHE_OP_MERGE:
            minicache_cpu_merge(params, dst);
            break;
        case GGML_MINICACHE_OP_RETAIN:
            minicache_cpu_retain(params, dst);
            break;
        case GGML_MINICACHE_OP_ATTN:
        case GGML_MINICACHE_OP_ATTN_CODE:
            if (minicache_params<ggml_minicache_attn_params>(dst).reference) {
                minicache_cpu_attn_ref(params, dst);
            } else {
                minicache_cpu_attn(params, dst);
            }
            break;
        case GGML_MINICACHE_OP_ENCODE:
            if (minicache_params<ggml_minicache_encode_params>(dst).reference) {
                minicache_cpu_encode_ref(params, dst);
            } else {
                minicache_cpu_encode(params, dst);
            }
            break;
    }
}

size_t ggml_minicache_work_size(const ggml_tensor * op, int n_threads) {
    switch (ggml_minicache_get_op(op)) {
        case GGML_MINICACHE_OP_ATTN:
        case GGML_MINICACHE_OP_ATTN_CODE:
            return minicache_params<ggml_minicache_attn_params>(op).reference ? minicache_cpu_attn_ref_work_size(op, n_threads) :
                                                                                minicache_cpu_attn_work_size(op, n_threads);
        case GGML_MINICACHE_OP_ENCODE:
            return minicache_params<ggml_minicache_encode_params>(op).reference ?
                       minicache_cpu_encode_ref_work_size(op, n_threads) :
                       minicache_cpu_encode_work_size(op, n_threads);
        default:
            return 0;
    }
}
