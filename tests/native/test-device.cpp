#include "test-device.h"

#include "ggml-cpu.h"

#ifdef MINICACHE_CUDA_ON_CPU
#include "cuda-on-cpu/backend.h"
#endif

test_device::test_device(const std::string & name) {
    ggml_backend_load_all();
#ifdef MINICACHE_CUDA_ON_CPU
    ggml_backend_register(cuda_on_cpu_reg());
#endif
    backend.reset(ggml_backend_init_by_name(name.c_str(), nullptr));
}

bool test_device::is_cpu() const { return ggml_backend_is_cpu(backend.get()); }

bool test_device::supports(ggml_cgraph * graph) const {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        if (!ggml_backend_supports_op(backend.get(), ggml_graph_node(graph, i))) {
            return false;
        }
    }
    return true;
}

bool test_device::compute(ggml_cgraph * graph, int n_threads) const {
    if (is_cpu()) {
        ggml_backend_cpu_set_n_threads(backend.get(), n_threads);
    }
    return ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS;
}
