#include "llama-minicache-array-graph.h"

#include <algorithm>
#include <stdexcept>

static void check(bool ok, const char * message) {
    if (!ok) {
        throw std::runtime_error(message);
    }
}

minicache_array_graph::minicache_array_graph() : memory(32 * ggml_tensor_overhead() + ggml_graph_overhead()) {
    ctx.reset(ggml_init({ memory.size(), memory.data(), /*.no_alloc =*/true }));
    backend.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    check(ctx && backend, "the CPU backend could not be started");
}

void minicache_array_graph::allocate() {
    buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
    check((bool) buffer, "out of memory");
    ggml_backend_buffer_clear(buffer.get(), 0);
}

void minicache_array_graph::compute(ggml_tensor * result, int32_t n_threads, float * out) {
    ggml_backend_dev_t dev           = ggml_backend_get_device(backend.get());
    auto               set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
    if (set_n_threads) {
        set_n_threads(backend.get(), std::max(1, n_threads));
    }

    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, result);
    check(ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS, "the computation failed");
    ggml_backend_tensor_get(result, out, 0, ggml_nbytes(result));
}
