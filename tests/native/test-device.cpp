#include "test-device.h"

#include "ggml-cpu.h"

#ifdef MINICACHE_CUDA_ON_CPU
#include "cuda-on-cpu/device.h"
#endif

const char * const CUDA_ON_CPU = "cuda-on-cpu";

test_device::test_device(const std::string & name) {
#ifdef MINICACHE_CUDA_ON_CPU
    emulates = name == CUDA_ON_CPU;
#endif
    if (emulates || name == "CPU") {
        backend.reset(ggml_backend_cpu_init());
        cpu = true;
        return;
    }
    ggml_backend_load_all();
    backend.reset(ggml_backend_init_by_name(name.c_str(), nullptr));
}

bool test_device::supports(ggml_cgraph * graph) const {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
#ifdef MINICACHE_CUDA_ON_CPU
        if (emulates && node->op == GGML_OP_MINICACHE && !cuda_on_cpu_supports(node)) {
            return false;
        }
#endif
        if (!emulates && !ggml_backend_supports_op(backend.get(), node)) {
            return false;
        }
    }
    return true;
}

bool test_device::compute(ggml_cgraph * graph, int n_threads) const {
#ifdef MINICACHE_CUDA_ON_CPU
    if (emulates) {
        return cuda_on_cpu_compute(graph);
    }
#endif
    if (cpu) {
        ggml_backend_cpu_set_n_threads(backend.get(), n_threads);
    }
    return ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS;
}
