#include "test-device.h"

#ifdef MINICACHE_CUDA_ON_CPU
#include "cuda-on-cpu/backend.h"
#endif

void test_set_n_threads(ggml_backend_t backend, int n_threads) {
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    auto * set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    set(backend, n_threads);
}

test_device::test_device(const std::string & name) {
    ggml_backend_load_all();
#ifdef MINICACHE_CUDA_ON_CPU
    ggml_backend_register(cuda_on_cpu_reg());
#endif
    backend.reset(ggml_backend_init_by_name(name.c_str(), nullptr));
}

bool test_device::is_cpu() const {
    return ggml_backend_dev_type(ggml_backend_get_device(backend.get())) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

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
        test_set_n_threads(backend.get(), n_threads);
    }
    return ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS;
}
