#include "device.h"

#include "fattn.cuh"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-cuda.h"
#include "minicache-cuda.cuh"

// what minicache-cuda.cu asks where a tensor lies
ggml_backend_buffer_type_t ggml_backend_cuda_buffer_type(int) { return ggml_backend_cpu_buffer_type(); }

bool ggml_cuda_flash_attn_ext_supported(int, const ggml_tensor * op) {
    return op->src[0]->ne[0] == op->src[2]->ne[0] && op->src[0]->ne[0] % 32 == 0;
}

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context &, ggml_tensor * op) {
    const ggml_init_params params = { 32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
    const ggml_context_ptr ctx(ggml_init(params));
    const ggml_backend_ptr backend(ggml_backend_cpu_init());

    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, op);
    ggml_backend_graph_compute(backend.get(), graph);
}

bool cuda_on_cpu_supports(const ggml_tensor * op) { return op->op == GGML_OP_MINICACHE && ggml_cuda_minicache_supported(0, op); }

bool cuda_on_cpu_compute(ggml_cgraph * graph) {
    ggml_backend_cuda_context ctx;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (ggml_op_is_empty(node->op)) {
            continue;
        }
        if (!cuda_on_cpu_supports(node)) {
            return false;
        }
        ggml_cuda_minicache(ctx, node);
    }
    return true;
}
