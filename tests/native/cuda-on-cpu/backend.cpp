#include "backend.h"

#include "device-memory.h"
#include "fattn.cuh"
#include "ggml-backend-impl.h"
#include "ggml-cpp.h"
#include "ggml-cuda.h"
#include "minicache-cuda.cuh"

#include <cstdio>
#include <cstring>

namespace {

int    n_devices     = 1;
size_t device_memory = (size_t) 8 << 30;
int    fails_at      = -1;
bool   fails_on      = false;  // when it has failed
bool   dead          = false;
int    copy_fails_at = -1;
int    n_computed    = 0;

struct device_context {
    int                      index;
    char                     name[16];
    ggml_backend_device      device;
    ggml_backend_buffer_type buffer_type;
};

device_context & context_of(int device);

device_context & context_of(ggml_backend_dev_t device) { return *(device_context *) device->context; }

device_context & context_of(ggml_backend_buffer_type_t type) { return *(device_context *) type->context; }

device_context & context_of(ggml_backend_buffer_t buffer) { return context_of(buffer->buft); }

// What a failing CUDA call does, and any call after it if the device does not recover.
[[noreturn]] void fail() {
    ggml_abort("ggml-cuda/ggml-cuda.cu", 1, "CUDA error: an illegal memory access was asked for by a test");
}

void check_alive() {
    if (dead) {
        fail();
    }
}

void check_copy() {
    check_alive();
    if (copy_fails_at >= 0 && copy_fails_at-- == 0) {
        fail();
    }
}

//
// buffers
//

void buffer_free(ggml_backend_buffer_t buffer) {
    check_alive();
    device_free(context_of(buffer).index, buffer->context);
}

void * buffer_base(ggml_backend_buffer_t buffer) { return buffer->context; }

void buffer_memset(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    check_copy();
    const device_access access(context_of(buffer).index);
    memset((char *) tensor->data + offset, value, size);
}

void buffer_set(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    check_copy();
    const device_access access(context_of(buffer).index);
    memcpy((char *) tensor->data + offset, data, size);
}

void buffer_get(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    check_copy();
    const device_access access(context_of(buffer).index);
    memcpy(data, (const char *) tensor->data + offset, size);
}

ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) {
    return tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
}

bool is_ours(ggml_backend_buffer_t buffer) { return buffer->iface.get_tensor == buffer_get; }

bool buffer_copy(ggml_backend_buffer_t buffer, const ggml_tensor * from, ggml_tensor * to) {
    check_copy();
    if (!is_ours(buffer_of(from))) {
        return false;
    }
    const device_access reads(context_of(buffer_of(from)).index);
    const device_access writes(context_of(buffer).index);
    memcpy(to->data, from->data, ggml_nbytes(from));
    return true;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    check_copy();
    const device_access access(context_of(buffer).index);
    memset(buffer->context, value, buffer->size);
}

const char * type_name(ggml_backend_buffer_type_t type) { return context_of(type).name; }

ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    const int index = context_of(type).index;
    if (device_used(index) + size > device_memory) {
        return nullptr;
    }
    void * base = device_alloc(index, size);
    if (!base) {
        return nullptr;
    }
    const ggml_backend_buffer_i interface = { buffer_free, buffer_base, nullptr, buffer_memset, buffer_set, buffer_get, nullptr,
        nullptr, buffer_copy, buffer_clear, nullptr };
    return ggml_backend_buffer_init(type, interface, base, size);
}

size_t type_alignment(ggml_backend_buffer_type_t) { return 128; }

// ggml-cuda reads matrices up to the end of 512 columns.
size_t type_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    const int64_t over = ggml_is_quantized(tensor->type) ? tensor->ne[0] % 512 : 0;
    return ggml_nbytes(tensor) + (over ? ggml_row_size(tensor->type, 512 - over) : 0);
}

//
// computing
//

struct backend_context {
    device_context * device;
    ggml_backend_ptr cpu;
};

const char * backend_name(ggml_backend_t backend) { return ((backend_context *) backend->context)->device->name; }

void backend_free(ggml_backend_t backend) {
    delete (backend_context *) backend->context;
    delete backend;
}

void backend_synchronize(ggml_backend_t) { check_alive(); }

// On a GPU these do not wait, so that llama.cpp can have several GPUs compute at the same time. Here everything is done at once.

void backend_set_async(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    buffer_set(buffer_of(tensor), tensor, data, offset, size);
}

void backend_get_async(ggml_backend_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    buffer_get(buffer_of(tensor), tensor, data, offset, size);
}

bool backend_copy_async(ggml_backend_t, ggml_backend_t, const ggml_tensor * from, ggml_tensor * to) {
    return is_ours(buffer_of(to)) && buffer_copy(buffer_of(to), from, to);
}

void backend_record(ggml_backend_t, ggml_backend_event_t) { check_alive(); }

void backend_wait(ggml_backend_t, ggml_backend_event_t) { check_alive(); }

void compute_minicache(int device, ggml_tensor * node) {
    if (fails_at >= 0 && fails_at-- == 0) {
        dead = fails_on;
        fail();
    }
    ggml_backend_cuda_context ctx;
    ctx.device = device;
    ggml_cuda_minicache(ctx, node);
    ++n_computed;
}

ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    check_alive();
    const backend_context & ctx = *(const backend_context *) backend->context;

    for (int i = 0; i < graph->n_nodes;) {
        if (graph->nodes[i]->op == GGML_OP_MINICACHE) {
            compute_minicache(ctx.device->index, graph->nodes[i++]);
            continue;
        }
        const int first = i;
        while (i < graph->n_nodes && graph->nodes[i]->op != GGML_OP_MINICACHE) {
            ++i;
        }
        ggml_cgraph         between = ggml_graph_view(graph, first, i);
        const device_access access(ctx.device->index);
        const ggml_status   status = ggml_backend_graph_compute(ctx.cpu.get(), &between);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

ggml_guid_t backend_guid() {
    static ggml_guid guid = { 'c', 'u', 'd', 'a', '-', 'o', 'n', '-', 'c', 'p', 'u' };
    return &guid;
}

//
// devices
//

const char * device_name(ggml_backend_dev_t device) { return context_of(device).name; }

const char * device_description(ggml_backend_dev_t) { return "CUDA kernels, run on the CPU"; }

void device_get_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    *total = device_memory;
    *free  = device_memory - device_used(context_of(device).index);
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    *props             = {};
    props->name        = device_name(device);
    props->description = device_description(device);
    props->type        = device_type(device);
    props->caps.async  = true;
    props->caps.events = true;
    device_get_memory(device, &props->memory_free, &props->memory_total);
}

ggml_backend_t device_init(ggml_backend_dev_t device, const char *) {
    ggml_backend_ptr         cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu.get()));
    auto * set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    set_n_threads(cpu.get(), 1);

    ggml_backend_i interface   = {};
    interface.get_name         = backend_name;
    interface.free             = backend_free;
    interface.set_tensor_async = backend_set_async;
    interface.get_tensor_async = backend_get_async;
    interface.cpy_tensor_async = backend_copy_async;
    interface.synchronize      = backend_synchronize;
    interface.graph_compute    = backend_compute;
    interface.event_record     = backend_record;
    interface.event_wait       = backend_wait;
    return new ggml_backend{ backend_guid(), interface, device, new backend_context{ &context_of(device), std::move(cpu) } };
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) { return &context_of(device).buffer_type; }

bool device_supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    if (op->op == GGML_OP_MINICACHE) {
        return ggml_cuda_minicache_supported(context_of(device).index, op);
    }
    if (op->op == GGML_OP_FLASH_ATTN_EXT && (op->src[1]->type == GGML_TYPE_IQ4_NL || op->src[2]->type == GGML_TYPE_IQ4_NL)) {
        return false;  // as in ggml-cuda
    }
    return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
}

bool device_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    return type == device_buffer_type(device);
}

// As in ggml-cuda: larger batches are computed on the device even if the weights are in main memory.
bool device_offloads(ggml_backend_dev_t, const ggml_tensor * op) {
    const int64_t n = op->op == GGML_OP_GET_ROWS ? 0 : op->op == GGML_OP_MUL_MAT ? op->ne[1] : ggml_nrows(op);
    return n >= 32;
}

ggml_backend_event_t device_new_event(ggml_backend_dev_t device) { return new ggml_backend_event{ device, nullptr }; }

void device_free_event(ggml_backend_dev_t, ggml_backend_event_t event) { delete event; }

void device_await_event(ggml_backend_dev_t, ggml_backend_event_t) { check_alive(); }

//
// registration
//

const char * reg_name(ggml_backend_reg_t) { return "cuda-on-cpu"; }

size_t reg_count(ggml_backend_reg_t) { return n_devices; }

ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t index) { return &context_of((int) index).device; }

ggml_backend_reg registration = {
    GGML_BACKEND_API_VERSION,
    { reg_name, reg_count, reg_device, nullptr },
    nullptr,
};

device_context & context_of(int device) {
    static device_context contexts[N_DEVICES];
    device_context &      ctx = contexts[device];
    if (!ctx.device.context) {
        ctx.index = device;
        snprintf(ctx.name, sizeof(ctx.name), "%s%d", reg_name(&registration), device);
        ctx.device      = { { device_name, device_description, device_get_memory, device_type, device_props, device_init,
                                device_buffer_type, nullptr, nullptr, device_supports_op, device_supports_buft, device_offloads,
                                device_new_event, device_free_event, device_await_event },
            &registration, &ctx };
        ctx.buffer_type = { { type_name, type_alloc, type_alignment, nullptr, type_alloc_size, nullptr }, &ctx.device, &ctx };
    }
    return ctx;
}

}  // namespace

ggml_backend_reg_t cuda_on_cpu_reg() { return &registration; }

ggml_backend_reg_t ggml_backend_init(void) { return cuda_on_cpu_reg(); }

void cuda_on_cpu_set_devices(int n, size_t memory) {
    n_devices     = n;
    device_memory = memory;
}

void cuda_on_cpu_fail(int op, bool for_good) {
    fails_at = op;
    fails_on = for_good;
    dead     = false;
}

void cuda_on_cpu_fail_copy(int copy) { copy_fails_at = copy; }

int cuda_on_cpu_computed(void) { return n_computed; }

//
// what our kernels' files use of ggml-cuda
//

ggml_backend_buffer_type_t ggml_backend_cuda_buffer_type(int device) { return &context_of(device).buffer_type; }

bool ggml_cuda_flash_attn_ext_supported(int, const ggml_tensor * op) {
    return op->src[0]->ne[0] == op->src[2]->ne[0] && op->src[0]->ne[0] % 32 == 0;
}

void ggml_cuda_flash_attn_ext(ggml_backend_cuda_context & cuda, ggml_tensor * op) {
    const device_access access(cuda.device);

    const ggml_init_params params = { ggml_graph_overhead(), nullptr, true };
    const ggml_context_ptr ctx(ggml_init(params));
    const ggml_backend_ptr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));

    // only this node, because the tensors that its sources were computed from may hold something else by now
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    graph->nodes[0]     = op;
    graph->n_nodes      = 1;
    ggml_backend_graph_compute(cpu.get(), graph);
}
