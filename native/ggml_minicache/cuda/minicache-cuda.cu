#include "minicache-cuda.cuh"

#include "ggml-backend-impl.h"
#include "ggml-cuda.h"
#include "minicache-cuda-attn-schedule.h"

void ggml_cuda_minicache(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    ggml_cuda_set_device(ctx.device);

    switch (ggml_minicache_get_op(dst)) {
        case GGML_MINICACHE_OP_INDEX:
            minicache_cuda_index_forward(ctx, dst);
            break;
        case GGML_MINICACHE_OP_MERGE:
            minicache_cuda_merge_forward(ctx, dst);
            break;
        case GGML_MINICACHE_OP_RETAIN:
            minicache_cuda_retain_forward(ctx, dst);
            break;
        case GGML_MINICACHE_OP_ENCODE:
            minicache_cuda_encode_forward(ctx, dst);
            break;
        case GGML_MINICACHE_OP_ATTN:
        case GGML_MINICACHE_OP_ATTN_CODE:
            minicache_cuda_attn_forward(ctx, dst);
            break;
    }
}

// Whether a tensor of the cache is on this device, or not allocated yet. If it were elsewhere, the scheduler would hand out a
// copy of it, and what the op writes there would be lost.
static bool is_here(const ggml_tensor * x, int device) {
    if (!x) {
        return true;
    }
    const ggml_backend_buffer_t buffer = x->view_src ? x->view_src->buffer : x->buffer;
    return !buffer || ggml_backend_buffer_get_type(buffer) == ggml_backend_cuda_buffer_type(device);
}

static bool are_here(const ggml_tensor * op, int first, int last, int device) {
    for (int i = first; i <= last; ++i) {
        if (!is_here(op->src[i], device)) {
            return false;
        }
    }
    return true;
}

bool ggml_cuda_minicache_supported(int device, const ggml_tensor * op) {
    // the kernels multiply on tensor cores and use more shared memory than Turing has
    const auto & info = ggml_cuda_info().devices[device];
    if (!ampere_mma_available(info.cc) || info.smpbo < MINICACHE_ATTN_SHARED + 3 * 1024) {
        return false;
    }
    switch (ggml_minicache_get_op(op)) {
        case GGML_MINICACHE_OP_INDEX:
            return are_here(op, 1, 1, device);
        case GGML_MINICACHE_OP_MERGE:
            return true;
        case GGML_MINICACHE_OP_RETAIN:
            return are_here(op, 0, 0, device) && are_here(op, 4, 5, device) && minicache_cuda_retain_supported(op);
        case GGML_MINICACHE_OP_ENCODE:
            return are_here(op, 0, 2, device) && minicache_cuda_encode_supported(op);
        case GGML_MINICACHE_OP_ATTN:
        case GGML_MINICACHE_OP_ATTN_CODE:
            return are_here(op, 1, 5, device) && minicache_cuda_attn_supported(op);
    }
    return false;
}
